"""The solve stage on a run: fronts, plan and weights, each committed as soon as it is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from streamsparse.events import Notice, OnEvent, ignore, reporting
from streamsparse.executors import Execution
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.intake.latencies import read_latencies
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.solve.budget import parse_budget
from streamsparse.solve.constraints import Constraints
from streamsparse.solve.decision import Decision
from streamsparse.solve.finding import RunFronts, find_constrained_fronts, whole_here
from streamsparse.solve.finding import find_fronts as find_fronts
from streamsparse.solve.fronts import SolveSettings
from streamsparse.solve.measured import known_losses, transferred_losses
from streamsparse.solve.originals import Originals
from streamsparse.solve.plan import check_request
from streamsparse.solve.refit import RefittedLayer, affordable_search, kept_inputs, refit_layer
from streamsparse.solve.threads import blas_threads
from streamsparse.store import Run
from streamsparse.store.solution import commit_solution
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGraph, PrunePlan, Solution


def solve(
    run: Run | str | Path,
    *,
    budget: str | None = None,
    channels: Mapping[str, int] | None = None,
    constraints: Constraints | None = None,
    settings: SolveSettings | None = None,
    executor: str = "serial",
    scheduler: str | None = None,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> Solution:
    """Find every group's front, choose the channels, and re-estimate the weights of their consumers.

    Fronts depend on the statistics and settings alone: another budget reuses them and takes seconds. The losses
    that are minimised are those that `measure_sensitivities` measured for these fronts, else the held-out errors.

    Args:
        run: with complete statistics.
        budget: such as "params=0.2"; see `parse_budget`.
        channels: counts by hand, by group.
        constraints: on counts, positions and layers.
        settings: how fronts are found.
        executor: "serial", or "processes": groups are solved side by side, each with the memory of some Grams.
        scheduler: address of a Dask scheduler instead; its workers must see the run under the same path or URL.
        workers: local processes; None for one per core.

    Raises:
        ClusterError: workers or scheduler are gone; fronts that were found stay.
        StageMissingError: the statistics are not complete; no latencies for a budget of latency.
        UsageError, BudgetError: see `make_plan`.
    """
    settings, constraints = settings or SolveSettings(), constraints or Constraints()
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    whole = whole_here(captured, constraints)
    sizes = {group.name: group.size for group in captured.graph.groups}
    check_request(budget, channels, sizes, whole, constraints)
    _latencies(run, captured, budget)  # before any work
    with run.lock():
        decision = decide(
            run, captured, budget, constraints, settings, on_event, Execution(executor, scheduler, workers)
        )
        return commit_plan(run, captured, decision.plan(channels), on_event)


def decide(
    run: Run,
    captured: Captured,
    budget: str | None,
    constraints: Constraints,
    settings: SolveSettings,
    on_event: OnEvent = ignore,
    execution: Execution | None = None,
) -> Decision:
    """Fronts, found where they are missing, and losses: everything that a plan is made from."""
    plain = find_fronts(run, captured, settings, on_event, constraints, execution)
    listed = find_constrained_fronts(run, captured, settings, constraints, on_event)
    return decision_of(run, captured, RunFronts(plain, listed), constraints, budget, on_event)


def commit_plan(run: Run, captured: Captured, plan: PrunePlan, on_event: OnEvent = ignore) -> Solution:
    """Re-estimate the weights behind what the plan cuts, and commit both."""
    _notice_approximate(captured.graph, plan, on_event)
    inputs = kept_inputs(captured.graph, plan.keep)
    cut = [layer for layer, kept in inputs.items() if len(kept) < captured.graph.layers[layer].in_channels]
    refitted = refit_layers(captured, Statistics(run), cut, inputs, Originals.of(run), on_event)
    solution = Solution(plan, tuple(layer.error for layer in refitted), "independent")
    commit_solution(run, solution, {layer.layer: (layer.weight, layer.bias) for layer in refitted})
    return solution


def decision_of(
    run: Run,
    captured: Captured,
    fronts: RunFronts,
    constraints: Constraints,
    budget: str | None = None,
    on_event: OnEvent = ignore,
) -> Decision:
    """With what the run knows of losses and latencies. Writes nothing.

    Args:
        fronts: of all groups that do not stay whole under these constraints.
        budget: see `parse_budget`.
        on_event: hears when losses are not known and would matter.
    """
    by_loss = budget is not None and not budget.startswith("max-error")
    losses, kind = losses_of(run, fronts, on_event if by_loss else ignore)
    latencies = _latencies(run, captured, budget)
    return Decision(fronts.chosen, captured.costs, constraints, losses, kind, budget, latencies)


def _latencies(run: Run, captured: Captured, budget: str | None) -> LatencyModel | None:
    """Those of the budget's device; None for a budget of something else."""
    device = parse_budget(budget).device if budget is not None else None
    return None if device is None else read_latencies(run, captured, device)


def losses_of(run: Run, fronts: RunFronts, on_event: OnEvent = ignore) -> tuple[dict[str, np.ndarray], str]:
    """Predicted losses by group and count, and their kind; of listed groups by the errors of their own fronts."""
    losses, kind = known_losses(run, fronts.plain, on_event)
    for name, front in fronts.listed.items():
        losses[name] = transferred_losses(losses[name], fronts.plain[name].held_out, front.held_out)
    return losses, kind


def _notice_approximate(graph: ChannelGraph, plan: PrunePlan, on_event: OnEvent) -> None:
    """Say where cutting changes more than the refit knows of."""
    for group in graph.groups:
        if group.approximate is not None and plan.counts.get(group.name, group.size) < group.size:
            on_event(Notice("solve", f"group '{group.name}' is cut approximately: {group.approximate}"))


def refit_layers(
    captured: Captured,
    statistics: Statistics,
    layers: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    originals: Originals,
    on_event: OnEvent = ignore,
) -> list[RefittedLayer]:
    """Re-estimate the named layers on their kept inputs."""
    refitted = []
    with reporting("refit", len(layers), "layers", on_event) as advance:
        for layer in each_refitted(captured, statistics, layers, inputs, originals):
            refitted.append(layer)
            advance(1)
    return refitted


def each_refitted(
    captured: Captured,
    statistics: Statistics,
    layers: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    originals: Originals,
) -> Iterator[RefittedLayer]:
    """The same, one after the other."""
    for layer in layers:
        geometry, sums = captured.graph.layers[layer], statistics[layer]
        with blas_threads(geometry.columns):
            search = affordable_search(geometry, len(inputs[layer]), len(sums))
            found = refit_layer(geometry, sums, inputs[layer], search, originals.weight(geometry))
        yield found
