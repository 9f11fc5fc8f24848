"""The front of a group some of whose positions must stay or must go.

The positions that stay are regressed out of all others and of the responses (`partial_out`), those that go are left
out of the problem, and the rest is solved like any other group: its supports, with the positions that stay, are the
group's. Errors are those of the whole layer, in the units of the group's plain front.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamsparse.kernels.front import solve_front
from streamsparse.kernels.least_squares import partial_out
from streamsparse.kernels.pareto import FoundBy, Front
from streamsparse.kernels.regression import Problem, Regression, columns_of, loss_weights, support_error
from streamsparse.solve.fronts import GroupFront, SolveSettings, evaluated_counts, with_held_out_errors
from streamsparse.solve.originals import Originals
from streamsparse.solve.problems import Statistics, group_problem
from streamsparse.types import ChannelGroup, LayerGeometry

Positions = NDArray[np.int64]


def solve_constrained_group(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    settings: SolveSettings,
    kept: Positions,
    dropped: Positions,
    originals: Originals | None = None,
) -> GroupFront:
    """The front whose supports contain `kept` and nothing of `dropped`.

    Counts that the lists rule out (below the kept, and above all but the dropped, except the whole group) hold
    supports that break them, so that every count has one; `Constraints.allowed` never names these counts.

    Args:
        kept, dropped: sorted positions, disjoint.
        originals: see `solve_group`.
    """
    problem = group_problem(group, geometries, statistics)
    front = constrained_front(problem, settings, kept, dropped)
    counts = evaluated_counts(problem, len(statistics[group.consumers[0].layer]))
    inside = (counts >= len(kept)) & (counts <= group.size - len(dropped))
    asked = np.unique([*counts[inside], len(kept), group.size - len(dropped)])
    del problem
    return with_held_out_errors(group, geometries, statistics, front, asked, originals)


def constrained_front(problem: Problem, settings: SolveSettings, kept: Positions, dropped: Positions) -> Front:
    """Supports, training errors and methods for every count, see `solve_constrained_group`."""
    positions = problem[0].positions
    free = np.setdiff1d(np.arange(positions), np.concatenate([kept, dropped]))
    at_none = 1.0 if any(loss_weights(problem)) else 0.0
    supports = [kept[:count] for count in range(len(kept))]
    errors = [at_none] * len(kept)
    methods: list[FoundBy] = ["trivial"] * len(kept)
    ridge = settings.ridge
    if free.size:
        explained, remaining = _without(problem, kept, free)
        found = solve_front(remaining, method=settings.method, ridge=settings.ridge)
        supports += [np.sort(np.concatenate([kept, free[support]])) for support in found.supports]
        errors += np.maximum(found.errors - explained, 0.0).tolist()
        methods, ridge = methods + list(found.methods), found.ridge
    else:
        supports.append(kept)
        errors.append(support_error(problem, kept, ridge))
        methods.append("trivial")
    for count in range(len(dropped)):
        supports.append(np.sort(np.concatenate([kept, free, dropped[: count + 1]])))
        errors.append(errors[-1])
        methods.append("trivial")
    return Front(tuple(supports), np.array(errors), tuple(methods), ridge)


def _without(problem: Problem, kept: Positions, free: Positions) -> tuple[float, Problem]:
    """What the kept positions explain of the mean relative error, and the regressions of the free ones on the rest.

    The powers stay those of the whole responses, so that consumers keep their weights: the errors of the remaining
    problem are the group's plus what is explained already.
    """
    explained, remaining = 0.0, []
    for regression, weight in zip(problem, loss_weights(problem), strict=True):
        columns = columns_of(np.concatenate([kept, free]), regression.taps)
        gram, cross = regression.gram[np.ix_(columns, columns)], regression.cross[columns]
        if len(kept):
            context = np.arange(len(kept) * regression.taps)
            gram, cross, left = partial_out(gram, cross, regression.power, context)
            explained += weight * (regression.power - left)
        remaining.append(Regression(gram, cross, regression.power, regression.taps))
    return explained, tuple(remaining)
