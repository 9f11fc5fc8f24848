"""The manifest: what a run was captured from, and whether a second capture may join it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from streamsparse.capture.images import Images
from streamsparse.capture.plan import CaptureSettings
from streamsparse.errors import NonFiniteError, RunMismatchError
from streamsparse.network import graph_to_json
from streamsparse.network.costs import cost_model
from streamsparse.network.resize import stored_tensors
from streamsparse.network.weights import weights_digest, weights_to_bytes
from streamsparse.store import Run
from streamsparse.store.codecs import loss
from streamsparse.types import ChannelGraph

_VERSIONS = ("streamsparse", "torch", "zarr", "numpy")


@dataclass(frozen=True)
class Subject:
    """What is captured, by name: enough to build it again.

    Attributes:
        model: specification that builds the architecture, such as `pipelines.lenet:LeNet`, if known.
        data: specification of the calibration data, if known.
        options: of the data, to open it again: data_root, normalize, size.
    """

    model: str | None = None
    data: str | None = None
    options: Mapping[str, str | None] = field(default_factory=dict)


def describe(
    model: nn.Module,
    graph: ChannelGraph,
    images: Images,
    subject: Subject,
    layers: Sequence[str],
    settings: CaptureSettings,
) -> dict[str, Any]:
    """The manifest of a new run: model, data, channel graph, captured layers, costs, versions and seeds."""
    example = images.example
    tensors = stored_tensors(model)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
        "model": {
            "spec": subject.model,
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "digest": weights_digest(tensors),
        },
        "data": {
            "spec": subject.data,
            "options": dict(subject.options),
            "length": images.length,
            "images": len(images),
            "seed": images.seed,
            "shape": list(example.shape[1:]),
            "digest": images.digest(),
        },
        "sink": settings.sink,
        "storage": {
            "dtype": settings.dtype,
            "codec": settings.codec,
            "loss": loss(settings.codec, settings.dtype),
        },
        "layers": list(layers),
        "graph": graph_to_json(graph),
        "costs": cost_model(model, graph, example).to_json(),
    }


def check_weights(model: nn.Module) -> None:
    """Refuse weights that make every activation worthless.

    Raises:
        NonFiniteError: a parameter or buffer holds NaN or infinity; names it.
    """
    for name, tensor in stored_tensors(model).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                "The model's weights are not all finite.",
                expected="finite weights",
                got="NaN or infinity",
                where=name,
                remedy="check how the weights were trained and saved",
            )


def begin_run(run: Run, manifest: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Begin the run, or join one that was begun with the same model and data.

    Raises:
        RunMismatchError: it was begun with others; nothing is changed.
        SchemaVersionError: it was written by another version of the layout.
    """
    found = run.begin(manifest, weights_to_bytes(model))
    if found.get("sink") != manifest["sink"]:
        raise RunMismatchError(
            "This run was begun with another sink.",
            expected=f"--sink {found.get('sink')}",
            got=f"--sink {manifest['sink']}",
            where=run.url,
            remedy="repeat the first one, choose another RUN, or pass --overwrite to begin this one anew",
        )
    for part, keys in (("model", ("digest",)), ("data", ("images", "seed", "digest"))):
        ours = {key: manifest[part][key] for key in keys}
        theirs = {key: found[part].get(key) for key in keys}
        if ours != theirs:
            raise RunMismatchError(
                f"This run was begun with another {'model' if part == 'model' else 'sample of calibration data'}.",
                expected=f"{found[part].get('spec')} {theirs}",
                got=f"{manifest[part].get('spec')} {ours}",
                where=run.url,
                remedy="choose another RUN, or pass --overwrite to begin this one anew",
            )
    return found
