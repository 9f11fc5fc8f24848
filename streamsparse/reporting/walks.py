"""The paper's path of a few groups, walked anew: convergence of the alternation, and w as it sparsifies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamsparse.events import OnEvent, reporting
from streamsparse.kernels.channel_units import in_comparable_units
from streamsparse.kernels.entropic import alternate
from streamsparse.kernels.entropic_path import PathPoint
from streamsparse.kernels.front import walk_entropic
from streamsparse.kernels.regression import Problem
from streamsparse.report.facts import Step, Walk
from streamsparse.reporting.evidence import Evidence
from streamsparse.solve.problems import group_problem
from streamsparse.solve.threads import one_blas_thread
from streamsparse.types import ChannelGroup

WALKS = 3
WALK_COLUMNS = 1200
TOLERANCE = 1e-6
_LEAST_ITERATIONS, _MOST_ITERATIONS = 30, 120
_ALTERNATION_FLOPS = 1e11  # of W-steps: some seconds on one core


def walked_groups(evidence: Evidence, walks: int = WALKS, columns: int = WALK_COLUMNS) -> list[ChannelGroup]:
    """The groups of most channels whose consumers have at most so many columns each, in order of execution."""
    groups = [group for group in walkable(evidence) if _columns(evidence, group) <= columns]
    largest = sorted(groups, key=lambda group: -group.size)[:walks]  # stable: earlier ones of equals
    return [group for group in groups if group in largest]


def walkable(evidence: Evidence) -> list[ChannelGroup]:
    """Groups whose consumers' statistics are all there."""
    summed = set(evidence.summed)
    free = [group for group in evidence.captured.graph.groups if group.name not in evidence.whole]
    return [group for group in free if group.size > 1 and summed.issuperset(_layers(group))]


def walk_facts(
    evidence: Evidence, groups: Sequence[ChannelGroup], *, on_event: OnEvent
) -> tuple[tuple[Walk, ...], list[str]]:
    """The walks, and the groups whose plain alternation did not converge in its iterations."""
    found, open_ended = [], []
    with reporting("report: paths", len(groups), "groups", on_event) as advance:
        for group in groups:
            own = {layer: evidence.statistics[layer] for layer in _layers(group)}
            with one_blas_thread():
                problem = in_comparable_units(group_problem(group, evidence.captured.graph.layers, own))
                walk, converged = _walk(group, problem, _wanted(evidence, group))
            found.append(walk)
            if not converged:
                open_ended.append(group.name)
            advance(1)
    return tuple(found), open_ended


def _walk(group: ChannelGroup, problem: Problem, wanted: int) -> tuple[Walk, bool]:
    points = walk_entropic(problem, np.arange(group.size))
    at = min(points, key=lambda point: (abs(len(point.support) - wanted), point.eps_l2, point.eps_h))
    iterations = int(np.clip(_ALTERNATION_FLOPS / _step_flops(problem), _LEAST_ITERATIONS, _MOST_ITERATIONS))
    plain, accelerated = (
        alternate(
            problem, eps_l2=at.eps_l2, eps_h=at.eps_h, max_iterations=iterations, tolerance=TOLERANCE,
            accelerate=accelerate,
        )
        for accelerate in (False, True)
    )  # fmt: skip
    steps = tuple(map(_step, points))
    return Walk(group.name, steps, plain.losses, accelerated.losses, at.eps_l2, at.eps_h), plain.converged


def _step(point: PathPoint) -> Step:
    return Step(point.eps_l2, point.eps_h, len(point.support), tuple(point.w.tolist()))


def _wanted(evidence: Evidence, group: ChannelGroup) -> int:
    """The count that the alternation is shown at: the chosen one, else half."""
    plan = None if evidence.solution is None else evidence.solution.plan
    count = group.size if plan is None else plan.counts.get(group.name, group.size)
    return count if count < group.size else group.size // 2


def _step_flops(problem: Problem) -> float:
    """Of one W-step with all channels in."""
    return sum(len(one.gram) ** 3 / 3 + 4.0 * len(one.gram) ** 2 * one.outputs for one in problem)


def _layers(group: ChannelGroup) -> list[str]:
    return list(dict.fromkeys(consumer.layer for consumer in group.consumers))


def _columns(evidence: Evidence, group: ChannelGroup) -> int:
    """Of the widest consumer."""
    layers = evidence.captured.graph.layers
    return max(layers[layer].columns * layers[layer].groups for layer in _layers(group))
