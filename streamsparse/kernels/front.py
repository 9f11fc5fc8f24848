"""All methods on one channel group: from its statistics to its Pareto front.

Neither selector wins everywhere: backward elimination is better at mild sparsity, the entropic path at strong
sparsity, and exchanges improve both. The front keeps the best of all at every count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from streamsparse.errors import UsageError
from streamsparse.kernels.channel_units import in_comparable_units
from streamsparse.kernels.elimination import eliminate, shrink
from streamsparse.kernels.entropic_path import EPS_H_VALUES, EPS_L2_VALUES, PathPoint, entropic_path
from streamsparse.kernels.exchange import Surroundings, search
from streamsparse.kernels.growth import addition_gains, grow
from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.pareto import Front, held_out_errors, trivial_front
from streamsparse.kernels.regression import Problem, chain_errors, check_problem, safe_ridge

__all__ = ["Front", "Method", "held_out_errors", "solve_front", "walk_entropic"]

Method = Literal["best", "entropic", "elimination"]

_START_PARTS = (2, 4)  # of the positions, as elimination leaves them
_CHEAP_W_STEP_FLOPS = 3e9
_LEAST_EXPENSIVE_EPS_L2 = 1e-6
_MAX_SWAPS = 20
_MAX_SWAPS_OF_WIDE = 5  # the first take most of the gain, and each costs seconds
_WIDE_COLUMNS = 800
_SWAP_CANDIDATES = 64
_EXCHANGE_FLOPS = 3e11  # for the whole front
_SEARCHES_PER_COUNT = 3  # a typical number of neighbourhoods until no swap improves
_GROWN_AT_ONCE = 8
_SPREADS = (1.05, 1.1, 1.2, 1.3)  # between counts that are too expensive to search one by one
_FLOPS_PER_CANDIDATE = 5e6  # what the scoring of one leaving position costs beside its arithmetic


def solve_front(
    problem: Problem,
    *,
    method: Method = "best",
    counts: Sequence[int] | None = None,
    ridge: float = DEFAULT_RIDGE,
    on_iteration: Callable[[PathPoint], None] | None = None,
) -> Front:
    """The Pareto front of one channel group.

    Args:
        problem: the consumers' regressions.
        method: "entropic" (the path over both hyperparameters), "elimination" (backward), or "best": both, and
            exchanges that start from the better of them.
        counts: where "best" tries exchanges; None spreads as many counts as a fixed effort allows, all of
            them for small groups. Every count of the front is filled in any case.
        ridge: relative to each channel's mean diagonal, raised by powers of ten where a Gram needs it.
        on_iteration: called with every point of the entropic path.

    Every method is defined on degenerate problems, with no error, as long as the values are finite:

    * dead and duplicate channels, fewer patches than columns, a singular Gram: the ridge makes every refit unique;
      what adds nothing comes last, and errors[k] stays what it was without it.
    * constant responses (power 0): predicted by their mean, the consumer is not counted; if none is counted, all
      errors are 0 and supports go by position.
    * one channel: the front has two entries, errors[0] = 1 and that channel's error. k = 0 is the empty support,
      which predicts the mean; k = C holds everything.
    * scales: errors are relative to each consumer's power, ridges to each channel's, and channels whose powers
      differ by more than 1e4 are brought to one scale for the entropic path.
    * statistics in float32: a ridge that the Gram's round-off demands takes the place of a smaller one.
    """
    if method not in ("best", "entropic", "elimination"):
        raise UsageError("There is no such method.", expected="best, entropic or elimination", got=method)
    positions = check_problem(problem)
    ridge = safe_ridge(problem, ridge)
    starts = [np.arange(positions)]
    if method == "entropic":
        front = trivial_front(problem, ridge)
    else:
        elimination = eliminate(problem, ridge, ridge_is_safe=True)
        front = trivial_front(problem, ridge, float(elimination.errors[-1]))
        front = front.offer_chain(elimination.order[::-1], elimination.errors, "elimination")
        # Smaller starts walk other ways through the same trade-off, at a fraction of the cost.
        starts += [elimination.support(positions // part) for part in _START_PARTS if positions >= 4 * part]
    if method in ("best", "entropic"):
        comparable = in_comparable_units(problem)
        for kept in starts:
            points = walk_entropic(comparable, kept, on_iteration)
            front = _with_entropic(front, problem, points, len(kept) == positions)
        del comparable
    if method == "best":
        chosen = _exchange_counts(problem) if counts is None else counts
        inner = sorted({count for count in chosen if 0 < count < positions}, reverse=True)
        front = _with_exchanges(front, problem, inner)
    return _tightened(front, problem)


def _with_entropic(front: Front, problem: Problem, points: list[PathPoint], whole: bool) -> Front:
    """Offer the nested supports of every point of a path, by rank; `whole`: it started from all positions."""
    for number, point in enumerate(points):
        kept = len(point.support)
        order = point.ranking[:kept]
        if number == 0 and whole:
            # The channels that the first point dropped at once follow by what each would add.
            gains = addition_gains(problem, order, front.ridge)
            dropped = point.ranking[kept:]
            order = np.append(order, dropped[np.argsort(-gains[dropped], kind="stable")])
        front = front.offer_chain(order, chain_errors(problem, order, front.ridge), "entropic")
    return front


def walk_entropic(
    problem: Problem, kept: np.ndarray, on_iteration: Callable[[PathPoint], None] | None = None
) -> list[PathPoint]:
    """The walk from uniform weights on `kept`; coarser, and from a greater ε_L2, where a W-step is expensive.

    Args:
        problem: with channels in comparable units, see `channel_units`.
        kept: positions to start from.
        on_iteration: called with every point.
    """
    start = np.zeros(problem[0].positions)
    start[kept] = 1 / len(kept)
    flops = 0.0
    for regression in problem:
        columns = len(kept) * regression.taps
        flops += columns**3 / 3 + 4.0 * columns**2 * regression.outputs
    if flops <= _CHEAP_W_STEP_FLOPS / 10:
        return entropic_path(problem, start=start, on_point=on_iteration)
    if flops <= _CHEAP_W_STEP_FLOPS:
        values = [value for value in EPS_L2_VALUES if value >= _LEAST_EXPENSIVE_EPS_L2 / 10]
        return entropic_path(problem, values, EPS_H_VALUES[::2], start=start, on_point=on_iteration)
    return entropic_path(
        problem,
        [value for value in EPS_L2_VALUES[::2] if value >= _LEAST_EXPENSIVE_EPS_L2],
        EPS_H_VALUES[:1],
        start=start,
        max_iterations=10,
        tolerance=1e-3,
        on_point=on_iteration,
    )


def _exchange_counts(problem: Problem) -> list[int]:
    """Counts whose searches stay within the fixed effort: all of the cheap small ones, then ever sparser ones."""
    positions = problem[0].positions
    every = np.arange(1, positions)
    flops = np.zeros(len(every))
    for regression in problem:
        kept = every * regression.taps
        dropped = (positions - every) * regression.taps
        flops += kept**3 + 2.0 * kept**2 * dropped + 2.0 * kept * dropped * regression.outputs
        flops += np.minimum(_SWAP_CANDIDATES, every) * _FLOPS_PER_CANDIDATE
    effort = np.cumsum(_SEARCHES_PER_COUNT * flops)
    if effort[-1:].sum() <= _EXCHANGE_FLOPS:
        return every.tolist()
    cheap = max(1, int(np.searchsorted(effort, _EXCHANGE_FLOPS / 2)))
    wider = np.arange(0)
    for ratio in _SPREADS:
        spread = np.unique((cheap * ratio ** np.arange(1, positions)).clip(max=positions).round()).astype(np.int64)
        spread = spread[(spread > cheap) & (spread < positions)]
        affordable = np.cumsum(_SEARCHES_PER_COUNT * flops[spread - 1]) <= _EXCHANGE_FLOPS / 2
        wider = spread[affordable]
        if affordable.all():
            break
    return [*range(1, cheap + 1), *wider.tolist()]


def _with_exchanges(front: Front, problem: Problem, counts: list[int]) -> Front:
    """Search from the front's support at each count, downwards and up again; each result seeds the sizes around it.

    On the way up only those are searched that have changed since, and no wide ones of a front with gaps.
    """
    searched: dict[int, np.ndarray] = {}
    below = dict(pairwise([*counts, 0]))
    taps = max(regression.taps for regression in problem)

    def wide(count: int) -> bool:
        return count * taps > _WIDE_COLUMNS and len(counts) < front.positions - 1

    for count in [*counts, *reversed(counts)]:
        if count in searched and (wide(count) or np.array_equal(searched[count], front.supports[count])):
            continue
        most = _MAX_SWAPS_OF_WIDE if wide(count) else _MAX_SWAPS
        found = search(problem, front.supports[count], front.ridge, most, _SWAP_CANDIDATES)
        front = front.offer(found.support, found.error, "exchange")
        front = front.merge(_beside(problem, found, front), "exchange")
        if count - below[count] > 2:
            front = _with_smaller(front, problem, found.support, count - below[count] - 1)
        searched[count] = front.supports[count]
    return front


def _with_smaller(front: Front, problem: Problem, support: np.ndarray, removals: int) -> Front:
    """Offer what backward elimination leaves of a support that a search found."""
    order = shrink(problem, support, removals, front.ridge)
    errors = chain_errors(problem, order, front.ridge)
    sizes = range(len(support) - removals, len(support))
    return front.merge([(order[:size], float(errors[size])) for size in sizes], "exchange")


def _beside(problem: Problem, found: Surroundings, front: Front) -> list[tuple[np.ndarray, float]]:
    """The best supports one position smaller and one larger, where they beat the front."""
    count = len(found.support)
    cheapest = int(np.argmin(found.removal_costs))
    best = int(np.argmax(found.addition_gains))
    smaller = np.delete(found.support, cheapest)
    larger = np.sort(np.append(found.support, found.dropped[best]))
    candidates = [
        (smaller, found.error + float(found.removal_costs[cheapest])),
        (larger, found.error - float(found.addition_gains[best])),
    ]
    better = [support for support, error in candidates if error < front.errors[len(support)]]
    return [
        (support, float(chain_errors(problem, support, front.ridge)[-1]))
        for support in better
        if 0 < len(support) < front.positions and len(support) != count
    ]


def _tightened(front: Front, problem: Problem) -> Front:
    """Where the front only extended a smaller support, grow that one by the best positions instead.

    What is grown beyond the extended counts is offered, too: a good support often stays good for several more.
    """
    count = 0
    while count < front.positions:
        last = count
        while last + 1 < front.positions and front.errors[last + 1] == front.errors[count] > 0:
            last += 1
        if last > count:
            added = grow(problem, front.supports[count], _additions(front, count, last), front.ridge)
            order = np.append(front.supports[count], added)
            errors = chain_errors(problem, order, front.ridge)
            supports = [(order[:size], float(errors[size])) for size in range(count + 1, len(order) + 1)]
            front = front.merge(supports, front.methods[count])
        count = max(last, count + 1)
    return front


def _additions(front: Front, count: int, last: int) -> int:
    return min(max(last - count, _GROWN_AT_ONCE), front.positions - count)
