"""All stages in order: from a trained model and calibration images to a pruned model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, Subject, capture
from streamsparse.errors import ModelError, StageMissingError, UsageError
from streamsparse.events import Notice, OnEvent, Reused, ignore
from streamsparse.improvement import improve
from streamsparse.intake.captured import original_model, read_captured
from streamsparse.intake.latencies import read_latencies
from streamsparse.latencies import measure_latencies
from streamsparse.network.observation import whole_groups
from streamsparse.report import layer_reports
from streamsparse.sensitivity import measure_sensitivities
from streamsparse.sequential import refit
from streamsparse.solve import Constraints, SolveSettings, check_request, find_fronts, parse_budget, solve
from streamsparse.solve.constraints import left_groups
from streamsparse.store import Run
from streamsparse.types import ChannelGraph, LayerReport, Solution
from streamsparse.write.checkpoint import decode_checkpoint
from streamsparse.write.directory import save
from streamsparse.write.stage import Written, write

SENSITIVITIES = ("kl", "fisher", "none")


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
    constraints: Constraints | None = None,
    run: Run | str | Path | None = None,
    images: int | None = None,
    seed: int = 0,
    sensitivity: str = "kl",
    improve_rounds: int = 0,
    stages: int | None = None,
    recalibrate: bool = False,
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
        budget: such as "params=0.2", "macs=0.5", "sparsity=0.887", "max-loss=0.02" or "max-error=0.01"; with
            "latency=0.5@cpu" the model's layers are timed on that device first.
        channels: counts by hand, by group.
        constraints: on counts, positions and layers, see `Constraints`.
        run: where the stages keep their work, so that a killed call resumes; None keeps nothing on disk.
        images: how many images to sample; None for all.
        seed: of the sample.
        sensitivity: "kl": measure what cutting each group does to the model's output, and spend the budget where
            it suffers least; "none": minimise the sum of the groups' held-out errors.
        improve_rounds: of `improve`, which measures whole cut networks; for budgets of parameters, MACs, bytes or
            latency.
        stages: of the sequential refit; None for one per layer, 1 for weights of one capture alone.
        recalibrate: estimate the running statistics of every BatchNorm anew behind the refitted weights.
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
        accept=lambda graph: _check_request(budget, channels, constraints, sensitivity, improve_rounds, graph),
        on_event=on_event,
    )
    _time_layers(run, original, budget, on_event)
    accumulate(run, settings=accumulate_settings, executor=executor, scheduler=scheduler, on_event=on_event)
    settings = solve_settings or SolveSettings()
    if sensitivity != "none" and _loss_matters(budget):
        device = _device(capture_settings)
        _measure(run, data, original, constraints or Constraints(), settings, sensitivity, device, on_event)
    if improve_rounds and budget is not None:
        solution = improve(
            run, data, budget=budget, model=original, constraints=constraints, settings=settings,
            rounds=improve_rounds, device=_device(capture_settings), on_event=on_event,
        ).solution  # fmt: skip
    else:
        solution = solve(
            run, budget=budget, channels=channels, constraints=constraints, settings=settings, on_event=on_event
        )
    if stages != 1 or recalibrate:
        solution = refit(
            run, data, model=original, stages=stages, recalibrate=recalibrate, settings=capture_settings,
            on_event=on_event,
        )  # fmt: skip
    written = write(run, model=original, name=name, on_event=on_event)
    files = run.read_checkpoint(name)
    pruned = decode_checkpoint(files, original_model(run, copy.deepcopy(model).cpu()))
    captured = read_captured(run)
    report = layer_reports(captured.graph, captured.costs, solution)
    return Result(pruned.eval(), report, solution, written, files)


def _device(settings: CaptureSettings | None) -> str:
    return "cpu" if settings is None else settings.device


def _time_layers(run: Run, original: nn.Module, budget: str | None, on_event: OnEvent) -> None:
    """For a budget of latency, unless the run holds a table of its device."""
    device = parse_budget(budget).device if budget is not None else None
    if device is None:
        return
    try:
        read_latencies(run, read_captured(run), device)
        on_event(Reused("latency", f"the table of '{device}'"))
    except StageMissingError:
        measure_latencies(run, model=original, device=device, on_event=on_event)


def _loss_matters(budget: str | None) -> bool:
    return budget is not None and parse_budget(budget).kind != "max-error"


def _measure(
    run: Run,
    data: object,
    original: nn.Module,
    constraints: Constraints,
    settings: SolveSettings,
    sensitivity: str,
    device: str,
    on_event: OnEvent,
) -> None:
    """Commit the sensitivities of all fronts; where outputs have no measure, say so and go on without."""
    with run.lock():
        fronts = find_fronts(run, read_captured(run), settings, on_event, constraints)
    try:
        measure_sensitivities(
            run, data, model=original, fronts=fronts, by=sensitivity, device=device, on_event=on_event
        )
    except ModelError as error:
        on_event(Notice("sensitivity", f"not measured, held-out errors stand in: {error.summary}"))


def _check_request(
    budget: str | None,
    channels: Mapping[str, int] | None,
    constraints: Constraints | None,
    sensitivity: str,
    improve_rounds: int,
    graph: ChannelGraph,
) -> None:
    if sensitivity not in SENSITIVITIES:
        raise UsageError(
            "Unknown way to measure.", expected=" | ".join(SENSITIVITIES), got=sensitivity, where="--sensitivity"
        )
    bounded = budget is not None and parse_budget(budget).bounds_cost
    if improve_rounds and (improve_rounds < 0 or channels or not bounded):
        raise UsageError(
            "Nothing can be improved so.",
            expected="rounds, and a budget of parameters, MACs, bytes or latency alone",
            got=f"{improve_rounds} rounds, budget {budget}, channels by hand {dict(channels or {})}",
            where="--improve", remedy="leave out --improve, or the counts by hand",
        )  # fmt: skip
    constraints = constraints or Constraints()
    whole = left_groups(graph, constraints.leave) | whole_groups(graph)
    check_request(budget, channels, {group.name: group.size for group in graph.groups}, whole, constraints)
