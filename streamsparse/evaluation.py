"""Evaluate a run: a checkpoint against the original, and predicted against measured errors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from streamsparse.errors import StageMissingError
from streamsparse.evaluate import Comparison, compare, measured_errors
from streamsparse.events import OnEvent, ignore
from streamsparse.intake.captured import Captured, original_model, read_captured
from streamsparse.network.latency import latency
from streamsparse.network.refitting import with_weights
from streamsparse.network.resize import stored_tensors
from streamsparse.network.weights import weights_digest
from streamsparse.store import Run, layout
from streamsparse.store.solution import read_buffers, read_solution, read_weights
from streamsparse.store.timings import recorded
from streamsparse.types import Costs
from streamsparse.write.checkpoint import decode_checkpoint, verify_checkpoint
from streamsparse.write.stage import pruned_model

WARM_UP, REPEATS = 3, 20


@dataclass(frozen=True)
class Latency:
    """Median wall time of one forward pass on this machine, after a warm-up.

    Attributes:
        batch_sizes: images per pass.
        original_seconds, pruned_seconds: one median per batch size.
        device: "cpu" or "cuda...".
        threads: torch's CPU threads.
        warm_up, repeats: passes before the clock starts, and passes that the median is of.
    """

    batch_sizes: tuple[int, ...]
    original_seconds: tuple[float, ...]
    pruned_seconds: tuple[float, ...]
    device: str
    threads: int
    warm_up: int
    repeats: int


@dataclass(frozen=True)
class Evaluation:
    """Quality and cost, before and after.

    Attributes:
        name: of the checkpoint.
        comparison: accuracy, agreement and divergence.
        original_costs, pruned_costs: parameters, MACs for one image, bytes.
        layer_errors: (predicted, measured) relative error of every re-estimated layer's output inside the pruned
            network, by layer; empty if the checkpoint's weights are not those of the run's present solution
            (another solution, or weights that were fine-tuned).
        latency: of both models, or None if it was not asked for.
    """

    name: str
    comparison: Comparison
    original_costs: Costs
    pruned_costs: Costs
    layer_errors: dict[str, tuple[float, float]]
    latency: Latency | None = None


def evaluate(
    run: Run | str | Path,
    data: Dataset[Any],
    *,
    model: nn.Module | None = None,
    name: str = "pruned",
    data_name: str | None = None,
    batch_images: int = 500,
    device: str = "cpu",
    latency_batch_sizes: Sequence[int] = (),
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Load a checkpoint into a fresh original and compare the two on a data set.

    Args:
        run: with the checkpoint.
        data: items are (image, label) or an image, preprocessed.
        model: the original; None builds it as the manifest says.
        name: of the checkpoint.
        data_name: the data set in words, for the report; None: its class.
        latency_batch_sizes: measure how long both models take on so many images; () for not at all.

    Raises:
        UsageError: a batch size below 1.
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
    config = description.config
    with recorded(run, "evaluate", on_event) as on_event:
        comparison = compare(original, pruned, data, batch_images=batch_images, device=device, on_event=on_event)
        evaluation = Evaluation(
            name=name,
            comparison=comparison,
            original_costs=config.costs_before or captured.costs.costs({}),
            pruned_costs=config.costs_after or captured.costs.costs_of_keep(config.kept),
            layer_errors=_layer_errors(
                run, captured, original, description.weights_digest, data, batch_images, device, on_event
            ),
            latency=_latency(original, pruned, captured, latency_batch_sizes, device)
            if latency_batch_sizes
            else None,
        )
        with run.lock():
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"data": data_name or type(data).__qualname__, "finished": finished}
            run.documents.write_json(layout.evaluation_key(name), {**asdict(evaluation), **about})
    return evaluation


def _latency(
    original: nn.Module, pruned: nn.Module, captured: Captured, batch_sizes: Sequence[int], device: str
) -> Latency:
    """Both models on random images of the captured shape; how long they take does not depend on the values."""
    image = torch.rand(1, *captured.manifest["data"]["shape"], device=device)
    seconds = [
        tuple(latency(m.to(device), image, batch_sizes=batch_sizes, warm_up=WARM_UP, repeats=REPEATS).values())
        for m in (original, pruned)
    ]
    sizes = tuple(dict.fromkeys(batch_sizes))
    return Latency(sizes, seconds[0], seconds[1], device, torch.get_num_threads(), WARM_UP, REPEATS)


def _layer_errors(
    run: Run,
    captured: Captured,
    original: nn.Module,
    checkpoint_digest: str,
    data: Dataset[Any],
    batch_images: int,
    device: str,
    on_event: OnEvent,
) -> dict[str, tuple[float, float]]:
    """Predicted and measured errors, if the checkpoint holds exactly the weights of the run's solution."""
    try:
        solution = read_solution(run)
    except StageMissingError:
        return {}
    own = pruned_model(run, captured, solution, original.cpu())
    if weights_digest(stored_tensors(own)) != checkpoint_digest:
        return {}
    twin = with_weights(original, read_weights(run, solution), read_buffers(run, solution))
    predicted = {error.layer: error.held_out_error for error in solution.layers}
    measured = measured_errors(
        original, twin, list(predicted), data, batch_images=batch_images, device=device, on_event=on_event
    )
    return {layer: (predicted[layer], measured[layer]) for layer in predicted}
