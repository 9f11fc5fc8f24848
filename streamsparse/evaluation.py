"""Evaluate a run: a checkpoint against the original, and predicted against measured errors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from streamsparse.errors import StageMissingError
from streamsparse.evaluate import Comparison, compare, measured_errors
from streamsparse.events import OnEvent, ignore
from streamsparse.intake.captured import original_model, read_captured
from streamsparse.network.refitting import with_weights
from streamsparse.store import Run, layout
from streamsparse.store.solution import read_solution, read_weights
from streamsparse.types import Costs
from streamsparse.write.checkpoint import decode_checkpoint, verify_checkpoint


@dataclass(frozen=True)
class Evaluation:
    """Quality and cost, before and after.

    Attributes:
        name: of the checkpoint.
        comparison: accuracy, agreement and divergence.
        original_costs, pruned_costs: parameters, MACs for one image, bytes.
        layer_errors: (predicted, measured) relative error of every re-estimated layer's output inside the pruned
            network, by layer; empty if the checkpoint is not that of the run's present solution.
    """

    name: str
    comparison: Comparison
    original_costs: Costs
    pruned_costs: Costs
    layer_errors: dict[str, tuple[float, float]]


def evaluate(
    run: Run | str | Path,
    data: Dataset[Any],
    *,
    model: nn.Module | None = None,
    name: str = "pruned",
    batch_images: int = 500,
    device: str = "cpu",
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Load a checkpoint into a fresh original and compare the two on a data set.

    Args:
        run: with the checkpoint.
        data: items are (image, label) or an image, preprocessed.
        model: the original; None builds it as the manifest says.
        name: of the checkpoint.

    Raises:
        StageMissingError: no such checkpoint.
        CheckpointError: it is damaged.
        DataError, ModelError: see `compare`.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    original = original_model(run, model)
    files = run.read_checkpoint(name)
    description, _ = verify_checkpoint(files)
    pruned = decode_checkpoint(files, copy.deepcopy(original).cpu())
    comparison = compare(original, pruned, data, batch_images=batch_images, device=device, on_event=on_event)
    config = description.config
    evaluation = Evaluation(
        name=name,
        comparison=comparison,
        original_costs=config.costs_before or captured.costs.costs({}),
        pruned_costs=config.costs_after or captured.costs.costs_of_keep(config.kept),
        layer_errors=_layer_errors(
            run, original, config.statistics.get("held_out_errors", {}), data, batch_images, device, on_event
        ),
    )
    with run.lock():
        run.documents.write_json(layout.evaluation_key(name), asdict(evaluation))
    return evaluation


def _layer_errors(
    run: Run,
    original: nn.Module,
    predicted_errors: Mapping[str, float],
    data: Dataset[Any],
    batch_images: int,
    device: str,
    on_event: OnEvent,
) -> dict[str, tuple[float, float]]:
    """Predicted and measured errors, if the run's solution is the one that the checkpoint was written from."""
    try:
        solution = read_solution(run)
    except StageMissingError:
        return {}
    if predicted_errors != {error.layer: error.held_out_error for error in solution.layers}:
        return {}
    twin = with_weights(original, read_weights(run, solution))
    predicted = {error.layer: error.held_out_error for error in solution.layers}
    measured = measured_errors(
        original, twin, list(predicted), data, batch_images=batch_images, device=device, on_event=on_event
    )
    return {layer: (predicted[layer], measured[layer]) for layer in predicted}
