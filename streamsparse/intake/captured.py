"""What a run was captured from, read back: channel graph, costs, and the original model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from streamsparse.errors import CorruptDataError, RunMismatchError, UsageError
from streamsparse.intake.models import build_model
from streamsparse.kernels.costs import CostModel
from streamsparse.network import graph_from_json
from streamsparse.network.resize import stored_tensors
from streamsparse.network.weights import restore_weights, weights_digest
from streamsparse.store import Run, layout
from streamsparse.types import ChannelGraph


@dataclass(frozen=True)
class Captured:
    """A run's manifest, parsed.

    Attributes:
        manifest: as stored.
        graph: channel groups of the original.
        costs: of every architecture that the graph allows.
    """

    manifest: dict[str, Any]
    graph: ChannelGraph
    costs: CostModel


def read_captured(run: Run) -> Captured:
    """The parsed manifest.

    Raises:
        RunNotFoundError, SchemaVersionError, CorruptDataError: there is no readable run.
    """
    manifest = run.manifest()
    try:
        return Captured(manifest, graph_from_json(manifest["graph"]), CostModel.from_json(manifest["costs"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(
            "The run's manifest is not readable.",
            expected="a channel graph and costs",
            got=repr(error),
            where="manifest.json",
            remedy="restore the file from a copy, or capture again with --overwrite",
        ) from error


def original_model(run: Run, model: nn.Module | None = None) -> nn.Module:
    """The original with its captured weights, in evaluation mode.

    Args:
        model: the original itself; None builds it from the specification in the manifest.

    Raises:
        UsageError: no model is given and the manifest names none.
        RunMismatchError: the given model has other weights than the captured one.
    """
    about = run.manifest()["model"]
    if model is not None:
        digest = weights_digest(stored_tensors(model))
        if digest != about["digest"]:
            raise RunMismatchError(
                "This is not the model that the run was captured with.",
                expected=f"{about['class']} with weights {about['digest'][:16]}…",
                got=f"{type(model).__qualname__} with weights {digest[:16]}…",
                where=run.url,
                remedy="pass the original model with its original weights",
            )
        return model.eval()
    if about["spec"] is None:
        raise UsageError(
            "The run does not say how to build its model.",
            expected="a model, or a run captured with a specification such as torchvision:resnet18",
            got=f"a run of {about['class']} without one",
            where=run.url,
            remedy="pass model=...",
        )
    fresh = build_model(about["spec"], trust_code=True)
    return restore_weights(fresh, run.weights(), where=f"{run.url}/{layout.WEIGHTS}").eval()
