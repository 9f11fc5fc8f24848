"""The write stage: a plan and re-estimated weights into a smaller model and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamsparse.errors import UsageError
from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.intake.captured import Captured, original_model, read_captured
from streamsparse.network import prune
from streamsparse.network.refitting import with_weights
from streamsparse.network.surgery import size_attributes
from streamsparse.store import Run
from streamsparse.store.solution import read_buffers, read_solution, read_weights
from streamsparse.store.timings import recorded
from streamsparse.types import Costs, Solution
from streamsparse.write.checkpoint import encode_checkpoint
from streamsparse.write.description import CONFIG_FILE, CheckpointConfig
from streamsparse.write.export import export_onnx, export_pt2
from streamsparse.write.safetensors_file import WEIGHTS_FILE

FORMATS = ("safetensors", "pt2", "onnx")


@dataclass(frozen=True)
class Written:
    """A checkpoint in the run.

    Attributes:
        name: of the checkpoint.
        location: path or URL of its directory.
        weights_bytes: size of its weights file; original_bytes: of the original's.
        costs: of the pruned model; original_costs: of the original.
        sparsity: fraction of the parameters that was removed.
    """

    name: str
    location: str
    weights_bytes: int
    original_bytes: int
    costs: Costs
    original_costs: Costs
    sparsity: float


def write(
    run: Run | str | Path,
    *,
    model: nn.Module | None = None,
    name: str = "pruned",
    formats: Sequence[str] = ("safetensors",),
    on_event: OnEvent = ignore,
) -> Written:
    """Cut the channels out of the original and write the checkpoint, replacing one of the same name.

    Args:
        run: with a finished solution.
        model: the original; None builds it as the manifest says.
        name: of the checkpoint.
        formats: "safetensors" always, and "pt2" and "onnx" where wanted, see `parse_formats`.

    Raises:
        StageMissingError: no finished solution.
        UsageError, RunMismatchError: see `original_model`.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    captured, solution = read_captured(run), read_solution(run)
    with (
        run.lock(),
        recorded(run, "write", on_event) as on_event,
        reporting("write", 1, "checkpoint", on_event) as advance,
    ):
        original = original_model(run, model)
        pruned = pruned_model(run, captured, solution, original)
        files = encode_checkpoint(pruned, _config(captured, solution, original))
        files |= _exports(pruned, captured, formats)
        prefix = run.write_checkpoint(name, files, last=CONFIG_FILE)
        advance(1)
    return Written(
        name=name,
        location=f"{run.url}/{prefix}",
        weights_bytes=len(files[WEIGHTS_FILE]),
        original_bytes=len(run.weights()),
        costs=solution.plan.costs,
        original_costs=solution.plan.original_costs,
        sparsity=solution.plan.sparsity,
    )


def parse_formats(text: str) -> tuple[str, ...]:
    """`safetensors,pt2,onnx` or a part of it.

    Raises:
        UsageError: an unknown format.
    """
    wanted = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise UsageError("Unknown format.", expected=",".join(FORMATS), got=text, where="--format")
    return wanted


def _exports(pruned: nn.Module, captured: Captured, formats: Sequence[str]) -> dict[str, bytes]:
    """Optional files, from synthetic example inputs."""
    example = torch.zeros(2, *captured.manifest["data"]["shape"])
    exporters = {"pt2": export_pt2, "onnx": export_onnx}
    return {f"model.{name}": exporters[name](pruned, example) for name in formats if name in exporters}


def pruned_model(run: Run, captured: Captured, solution: Solution, original: nn.Module) -> nn.Module:
    """A smaller copy of the original with the run's re-estimated weights and running statistics."""
    refitted = with_weights(original, read_weights(run, solution), read_buffers(run, solution))
    return prune(refitted, captured.graph, solution.plan.keep)


def _config(captured: Captured, solution: Solution, original: nn.Module) -> CheckpointConfig:
    about, plan = captured.manifest, solution.plan
    errors = [group.trial_error for group in captured.graph.groups if group.trial_error is not None]
    return CheckpointConfig(
        constructor=about["model"]["spec"],
        kept=plan.keep,
        original_sizes=plan.sizes,
        sizes=size_attributes(original, captured.graph, plan.keep),
        original_digest=about["model"]["digest"],
        statistics=_provenance(about, solution),
        max_trial_error=max(errors, default=None),
        costs_before=plan.original_costs,
        costs_after=plan.costs,
    )


def _provenance(about: Mapping[str, Any], solution: Solution) -> dict[str, Any]:
    return {
        "data": about["data"],
        "versions": about["versions"],
        "budget": solution.plan.budget,
        "refit": solution.mode,
        "recalibrated": list(solution.recalibrated),
        "held_out_errors": {error.layer: error.held_out_error for error in solution.layers},
    }
