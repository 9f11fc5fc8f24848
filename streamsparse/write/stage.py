"""The write stage: a plan and re-estimated weights into a smaller model and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.intake.captured import Captured, original_model, read_captured
from streamsparse.network import prune
from streamsparse.network.refitting import with_weights
from streamsparse.store import Run
from streamsparse.store.solution import read_solution, read_weights
from streamsparse.types import Costs, Solution
from streamsparse.write.checkpoint import encode_checkpoint
from streamsparse.write.description import CONFIG_FILE, CheckpointConfig
from streamsparse.write.safetensors_file import WEIGHTS_FILE


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
    on_event: OnEvent = ignore,
) -> Written:
    """Cut the channels out of the original and write the checkpoint, replacing one of the same name.

    Args:
        run: with a finished solution.
        model: the original; None builds it as the manifest says.
        name: of the checkpoint.

    Raises:
        StageMissingError: no finished solution.
        UsageError, RunMismatchError: see `original_model`.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    captured, solution = read_captured(run), read_solution(run)
    with run.lock(), reporting("write", 1, "checkpoint", on_event) as advance:
        pruned = pruned_model(run, captured, solution, original_model(run, model))
        files = encode_checkpoint(pruned, _config(captured, solution))
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


def pruned_model(run: Run, captured: Captured, solution: Solution, original: nn.Module) -> nn.Module:
    """A smaller copy of the original with the run's re-estimated weights."""
    refitted = with_weights(original, read_weights(run, solution))
    return prune(refitted, captured.graph, solution.plan.keep)


def _config(captured: Captured, solution: Solution) -> CheckpointConfig:
    about, plan = captured.manifest, solution.plan
    errors = [group.trial_error for group in captured.graph.groups if group.trial_error is not None]
    return CheckpointConfig(
        constructor=about["model"]["spec"],
        kept=plan.keep,
        original_sizes=plan.sizes,
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
        "held_out_errors": {error.layer: error.held_out_error for error in solution.layers},
    }
