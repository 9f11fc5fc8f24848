"""All stages in order: from a trained model and calibration images to a pruned model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, Subject, capture
from streamsparse.events import OnEvent, ignore
from streamsparse.intake.captured import original_model, read_captured
from streamsparse.network.observation import whole_groups
from streamsparse.report import layer_reports
from streamsparse.sequential import refit
from streamsparse.solve import SolveSettings, check_request, solve
from streamsparse.store import Run
from streamsparse.types import ChannelGraph, LayerReport, Solution
from streamsparse.write.checkpoint import decode_checkpoint
from streamsparse.write.directory import save
from streamsparse.write.stage import Written, write


@dataclass(frozen=True, eq=False)
class Result:
    """What `prune` returns.

    Attributes:
        model: the pruned network, in evaluation mode, ready to fine-tune.
        report: per layer: channels kept, held-out error, parameters, MACs.
        solution: the plan (channels kept per group, costs before and after) and the errors behind it.
        checkpoint: what was written.
        files: the checkpoint's files by name.
    """

    model: nn.Module
    report: tuple[LayerReport, ...]
    solution: Solution
    checkpoint: Written
    files: dict[str, bytes]

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the checkpoint to a directory of its own, whole or not at all."""
        return save(directory, self.files, overwrite=overwrite)


def prune(
    model: nn.Module,
    data: object,
    *,
    budget: str | None = None,
    channels: Mapping[str, int] | None = None,
    run: Run | str | Path | None = None,
    images: int | None = None,
    seed: int = 0,
    stages: int | None = None,
    name: str = "pruned",
    capture_settings: CaptureSettings | None = None,
    accumulate_settings: AccumulateSettings | None = None,
    solve_settings: SolveSettings | None = None,
    executor: str = "auto",
    scheduler: str | None = None,
    subject: Subject | None = None,
    on_event: OnEvent = ignore,
) -> Result:
    """Capture, accumulate, solve, refit in order, and write.

    Args:
        model: a trained network; it is left as it is.
        data: calibration images: a Dataset, a DataLoader over one, or a tensor (images, *shape).
        budget: such as "params=0.2", "macs=0.5", "sparsity=0.887" or "max-error=0.01".
        channels: counts by hand, by group.
        run: where the stages keep their work, so that a killed call resumes; None keeps nothing on disk.
        images: how many images to sample; None for all.
        seed: of the sample.
        stages: of the sequential refit; None for one per layer, 1 for weights of one capture alone.
        name: of the checkpoint in the run.
        capture_settings, accumulate_settings, solve_settings: see there.
        executor, scheduler: where statistics are summed, see `accumulate`.
        subject: how to build the model and open the data again, for later commands on this run.
        on_event: hears of progress.

    Raises:
        InputError: what was given cannot be used; the message says what to do.
        ResourceError: the machine failed; calling again with the same run resumes.
    """
    run = run if isinstance(run, Run) else Run.at("memory://" if run is None else run)
    original = copy.deepcopy(model)
    capture(
        original,
        data,
        run,
        images=images,
        seed=seed,
        settings=capture_settings,
        subject=subject,
        accept=lambda graph: _check_request(budget, channels, graph),
        on_event=on_event,
    )
    accumulate(run, settings=accumulate_settings, executor=executor, scheduler=scheduler, on_event=on_event)
    solution = solve(run, budget=budget, channels=channels, settings=solve_settings, on_event=on_event)
    if stages != 1:
        solution = refit(run, data, model=original, stages=stages, settings=capture_settings, on_event=on_event)
    written = write(run, model=original, name=name, on_event=on_event)
    files = run.read_checkpoint(name)
    pruned = decode_checkpoint(files, original_model(run, copy.deepcopy(model).cpu()))
    captured = read_captured(run)
    report = layer_reports(captured.graph, captured.costs, solution)
    return Result(pruned.eval(), report, solution, written, files)


def _check_request(budget: str | None, channels: Mapping[str, int] | None, graph: ChannelGraph) -> None:
    check_request(budget, channels, {group.name: group.size for group in graph.groups}, whole_groups(graph))
