"""The best of all architectures, where there are few: looked at one by one, so that none is missed."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from streamsparse.solve.architecture import Architecture, PriceTable
from streamsparse.solve.exchanges import Bounded

WALKS = 500
"""Effort: choices of all groups but the one with most, priced at once; takes about as long as the search."""


def are_few(table: PriceTable) -> bool:
    """Whether all architectures can be looked at."""
    return prod(sorted(len(one.counts) for one in table.choices)[:-1]) <= WALKS


def best_of_all(table: PriceTable, limit: float, bounded: Bounded = "cost") -> Architecture | None:
    """The architecture of least loss within a limit on the cost, or the other way round.

    Args:
        table: of one group or more.
        limit: on the cost or the loss, as `bounded` says; the other is least, and of equals the bounded one.

    Returns:
        None if no architecture is within the limit.
    """
    *others, last = sorted(range(len(table.choices)), key=lambda group: len(table.choices[group].counts))
    walker = Architecture(table, [0] * len(table.choices))
    best: tuple[float, float, list[int]] | None = None
    for places in product(*(range(len(table.choices[group].counts)) for group in others)):
        for group, place in zip(others, places, strict=True):
            if walker.choice[group] != place:
                walker.move(group, place)
        own = sum(float(table.choices[group].losses[place]) for group, place in zip(others, places, strict=True))
        losses, costs = own + table.choices[last].losses, walker.cost + walker.cost_changes(last)
        objective, held = (losses, costs) if bounded == "cost" else (costs, losses)
        within = np.flatnonzero(held <= limit)
        if within.size:
            place = int(within[np.lexsort((held[within], objective[within]))[0]])
            found = (float(objective[place]), float(held[place]))
            if best is None or found < best[:2]:
                choice = list(walker.choice)
                choice[last] = place
                best = (*found, choice)
    return None if best is None else Architecture(table, best[2])
