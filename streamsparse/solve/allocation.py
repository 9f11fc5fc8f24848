"""Which counts lose least within a bound, over groups whose costs multiply.

The cost of a network is a sum of products of neighbouring groups' counts, and losses need not be convex, so the
exact optimum is out of reach for large networks. Where there are few architectures all are looked at. Else three
ways lead to some within the bound, and the best after the third is taken:

* a Lagrange multiplier (H. Everett, "Generalized Lagrange multiplier method", Operations Research 11, 1963):
  loss + λ·cost is minimised group by group, each exactly given its neighbours, and λ is bisected;
* steepest descent from the whole network, which also reaches what lies above the convex hull of the losses;
* local search from what these find: one group grows and another, chosen exactly, pays for it.

By exchanging loss and cost the same search finds the least cost within a bound on the loss; then the least loss at
a lower cost than that is looked for, as long as it is within the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor

import numpy as np

from streamsparse.solve.architecture import Architecture, PriceTable
from streamsparse.solve.exchanges import improve
from streamsparse.solve.exhaustive import are_few, best_of_all

_SWEEPS = 60
_BISECTIONS = 24
_ROUND_OFF = 0.3  # costs are whole numbers: less than one beyond the limit is none beyond it
_DECIMALS = 1e-12  # of a limit: what a product with a fraction, as it is written, may lose
_DESCENT_EFFORT = 80_000
"""Choices times the neighbours priced again at each step; beyond, descent from the whole network takes seconds."""
_OTHER_WAY_ROUNDS = 8
"""Of looking for the least loss at a lower cost; from the whole network too where that takes milliseconds."""
_SMALL_DESCENT_EFFORT = 1_000


def whole_units(cost_limit: float) -> int:
    """The largest whole cost within a limit; a fraction of a cost, written in decimals, is that cost again."""
    return floor(cost_limit * (1 + _DECIMALS))


def bound_of(cost_limit: float) -> float:
    """What an architecture's cost, a sum in floating point, is compared with."""
    return whole_units(cost_limit) + _ROUND_OFF


def least_loss(table: PriceTable, cost_limit: float, *, from_whole: bool = True) -> Architecture:
    """The architecture of least predicted loss within the limit.

    Args:
        cost_limit: in whole units (parameters, nanoseconds); the smallest architecture meets `bound_of` it.
        from_whole: look at all architectures where they are few; else descend from the whole network too, unless
            it is very large, and improve everything that was found: then it is never worse than steepest descent.
            Takes most of the time, and gains little.
    """
    limit = bound_of(cost_limit)
    largest = Architecture(table, [len(one.counts) - 1 for one in table.choices])
    if largest.cost <= limit:
        return largest
    if from_whole and are_few(table) and (best := best_of_all(table, limit)) is not None:
        return best
    found, beyond = _bisected(table, lambda one: one.cost <= limit)
    found.append(descend(beyond, limit))
    if from_whole and _descent_effort(table) <= _DESCENT_EFFORT:
        found.append(descend(largest, limit))
    if not from_whole:
        found = [min(found, key=lambda one: (one.loss, one.cost))]
    for one in found:
        improve(one, limit)
    return min(found, key=lambda one: (one.loss, one.cost))


def _descent_effort(table: PriceTable) -> int:
    pairs = zip(table.choices, table.neighbours, strict=True)
    return sum(len(one.counts) * (1 + len(near)) for one, near in pairs)


def least_cost(table: PriceTable, loss_limit: float) -> Architecture:
    """The architecture of least cost whose predicted loss is within the limit.

    Args:
        loss_limit: that the largest architecture meets.
    """
    smallest = Architecture(table, [0] * len(table.choices))
    if smallest.loss <= loss_limit:
        return smallest
    if are_few(table) and (best := best_of_all(table, loss_limit, bounded="loss")) is not None:
        return best
    found, _ = _bisected(table, lambda one: one.loss <= loss_limit)
    for one in found:
        improve(one, loss_limit, bounded="loss")
    best = min(found, key=lambda one: (one.cost, one.loss))
    for _ in range(_OTHER_WAY_ROUNDS):
        other = least_loss(table, best.cost - 1, from_whole=_descent_effort(table) <= _SMALL_DESCENT_EFFORT)
        if other.loss > loss_limit or other.cost >= best.cost:
            break
        improve(other, loss_limit, bounded="loss")
        best = other
    return best


def _bisected(table: PriceTable, within: Callable[[Architecture], bool]) -> tuple[list[Architecture], Architecture]:
    """Architectures of least loss + λ·cost: the best that are within the bound, and the next one beyond it."""
    largest = Architecture(table, [len(one.counts) - 1 for one in table.choices])
    smallest = Architecture(table, [0] * len(table.choices))
    cost_side = within(smallest)  # a bound on the cost is met by great λ, one on the loss by small λ
    inside, outside = (smallest, largest) if cost_side else (largest, smallest)
    start = max(smallest.loss - largest.loss, 1e-300) / max(largest.cost - smallest.cost, 1.0)
    low, high = start / 1e6, start * 1e6
    found = [inside]
    for _ in range(_BISECTIONS):
        middle = float(np.sqrt(low * high))
        candidates = [_settled(one, middle) for one in (inside, outside)]
        best = min(candidates, key=lambda one: one.loss + middle * one.cost)
        met = within(best)
        if met:
            inside = best
            found.append(best)
        else:
            outside = best
            found += [one for one in candidates if within(one)]
        low, high = (low, middle) if met == cost_side else (middle, high)
    return _distinct(found, cost_side), outside


def _distinct(found: list[Architecture], cost_side: bool) -> list[Architecture]:
    """The best few of them, each once."""
    by_choice = {tuple(one.choice): one for one in found}
    ranked = sorted(by_choice.values(), key=lambda one: one.loss if cost_side else one.cost)
    return [one.copy() for one in ranked[:2]]


def _settled(start: Architecture, multiplier: float) -> Architecture:
    """From `start`, no group alone can lower loss + multiplier·cost."""
    found = start.copy()
    groups = range(len(found.choice))
    pending = dict.fromkeys(groups)
    for _ in range(_SWEEPS):
        if not pending:
            break
        wanted, pending = list(pending), {}
        for group in wanted:
            objective = found.loss_changes(group) + multiplier * found.cost_changes(group)
            place = int(objective.argmin())
            if objective[place] < -1e-12 * (abs(found.loss) + multiplier * found.cost):
                found.move(group, place)
                pending.update(dict.fromkeys(found.table.neighbours[group]))
    return found


def descend(start: Architecture, limit: float) -> Architecture:
    """Steepest descent: of all reductions of one group, take the one that costs least loss per unit saved.

    A step may pass over several counts at once, so that a bump in a group's loss does not block the way.
    """
    found = start.copy()
    best: dict[int, tuple[float, int]] = {}
    while found.cost > limit:
        excess = found.cost - limit
        for group in range(len(found.choice)):
            if group not in best:
                best[group] = _steepest(found, group, excess)
        ratio, group = min((ratio, group) for group, (ratio, _) in best.items())
        if not np.isfinite(ratio):  # nothing is saved any more
            return Architecture(found.table, [0] * len(found.choice))
        found.move(group, best[group][1])
        for other in (group, *found.table.neighbours[group]):
            best.pop(other, None)
        excess = found.cost - limit
        for other in list(best):  # what saves more than is needed counts as what is needed
            if -found.cost_changes(other)[0] > excess:
                best.pop(other)
    return found


def _steepest(found: Architecture, group: int, excess: float) -> tuple[float, int]:
    """Loss per unit saved, and place, of the group's best reduction; infinite if it has none."""
    below = found.choice[group]
    saved = -found.cost_changes(group)[:below]
    if not (saved > 0).any():
        return np.inf, below
    ratios = np.full(below, np.inf)
    np.divide(found.loss_changes(group)[:below], np.minimum(saved, excess), out=ratios, where=saved > 0)
    place = int(ratios[::-1].argmin())  # the smallest reduction of equals
    return float(ratios[below - 1 - place]), below - 1 - place
