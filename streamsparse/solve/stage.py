"""The solve stage on a run: fronts, plan and weights, each committed as soon as it is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from streamsparse.events import Notice, OnEvent, Reused, ignore, reporting
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.network.observation import whole_groups
from streamsparse.solve.fronts import GroupFront, SolveSettings, solve_groups
from streamsparse.solve.plan import check_request, make_plan
from streamsparse.solve.refit import RefittedLayer, candidate_ridges, kept_inputs, refit_layer
from streamsparse.solve.threads import blas_threads
from streamsparse.store import Run, layout
from streamsparse.store.solution import commit_solution
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGraph, ChannelGroup, PrunePlan, Solution


def solve(
    run: Run | str | Path,
    *,
    budget: str | None = None,
    channels: Mapping[str, int] | None = None,
    settings: SolveSettings | None = None,
    on_event: OnEvent = ignore,
) -> Solution:
    """Find every group's front, choose the channels, and re-estimate the weights of their consumers.

    Fronts depend on the statistics and settings alone: another budget reuses them and takes seconds.

    Args:
        run: with complete statistics.
        budget: such as "params=0.2"; see `parse_budget`.
        channels: counts by hand, by group.
        settings: how fronts are found.

    Raises:
        StageMissingError: the statistics are not complete.
        UsageError, BudgetError: see `make_plan`.
    """
    settings = settings or SolveSettings()
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    whole = whole_groups(captured.graph, captured.manifest["layers"])
    check_request(budget, channels, {group.name: group.size for group in captured.graph.groups}, whole)
    with run.lock():
        fronts = find_fronts(run, captured, settings, on_event)
        free = {name: count for name, count in (channels or {}).items() if name not in whole}
        plan = make_plan(fronts, captured.costs, budget=budget, channels=free)
        _notice_approximate(captured.graph, plan, on_event)
        inputs = kept_inputs(captured.graph, plan.keep)
        cut = [layer for layer, kept in inputs.items() if len(kept) < captured.graph.layers[layer].in_channels]
        refitted = refit_layers(captured, Statistics(run), cut, inputs, on_event)
        solution = Solution(plan, tuple(layer.error for layer in refitted), "independent")
        commit_solution(run, solution, {layer.layer: (layer.weight, layer.bias) for layer in refitted})
        return solution


def find_fronts(
    run: Run, captured: Captured, settings: SolveSettings, on_event: OnEvent = ignore
) -> dict[str, GroupFront]:
    """The fronts of all groups whose consumers can be re-estimated; committed ones of the same source are kept.

    Each of the others is noticed by name, with the layer that is in the way.
    """
    statistics = Statistics(run).require(captured.manifest["layers"])
    whole = whole_groups(captured.graph, captured.manifest["layers"])
    for name, reason in whole.items():
        on_event(Notice("solve", f"group '{name}' stays whole: {reason}"))
    groups = [group for group in captured.graph.groups if group.name not in whole]
    found: dict[str, GroupFront] = {}
    todo = []
    for group in groups:
        committed = _committed_front(run, group, _source(statistics, group, settings))
        if committed is None:
            todo.append(group)
        else:
            found[group.name] = committed
    if found:
        on_event(Reused("solve", f"the fronts of {len(found)} of {len(groups)} groups"))
    for front in solve_groups(captured.graph, todo, statistics, settings, on_event) if todo else ():
        source = _source(statistics, captured.graph.group(front.group), settings)
        run.records.write(layout.front_key(front.group), {**front.description(), "source": source}, front.arrays())
        found[front.group] = front
    return {group.name: found[group.name] for group in groups}


def _notice_approximate(graph: ChannelGraph, plan: PrunePlan, on_event: OnEvent) -> None:
    """Say where cutting changes more than the refit knows of."""
    for group in graph.groups:
        if group.approximate is not None and plan.counts.get(group.name, group.size) < group.size:
            on_event(Notice("solve", f"group '{group.name}' is cut approximately: {group.approximate}"))


def _source(statistics: Statistics, group: ChannelGroup, settings: SolveSettings) -> str:
    about = [statistics.description(consumer.layer) or {} for consumer in group.consumers]
    return settings.source([description["source"] for description in about])


def _committed_front(run: Run, group: ChannelGroup, source: str) -> GroupFront | None:
    about = run.records.description(layout.front_key(group.name))
    if about is None or about.get("source") != source:
        return None
    record = run.records.read(layout.front_key(group.name))
    return None if record is None else GroupFront.from_arrays(record.arrays, record.description)


def refit_layers(
    captured: Captured,
    statistics: Statistics,
    layers: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    on_event: OnEvent = ignore,
) -> list[RefittedLayer]:
    """Re-estimate the named layers on their kept inputs."""
    refitted = []
    with reporting("refit", len(layers), "layers", on_event) as advance:
        for layer in layers:
            geometry, sums = captured.graph.layers[layer], statistics[layer]
            with blas_threads(geometry.columns):
                ridges = candidate_ridges(geometry, len(inputs[layer]), len(sums))
                refitted.append(refit_layer(geometry, sums, inputs[layer], ridges))
            advance(1)
    return refitted
