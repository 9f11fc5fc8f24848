"""Local search on an architecture: one group gains, another pays for it, until no such pair helps.

With the cost bounded, a group gains by growing (less loss) and pays by shrinking; with the loss bounded, the other
way round. What a payer gives up is chosen exactly: along its counts both sides are monotone, so the least that
suffices is the best. Neighbours share tensors, and each one's price depends on the other's count: such pairs are
priced with the gainer's move made, and only when no other pair helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamsparse.solve.architecture import Architecture

Bounded = Literal["cost", "loss"]

_ROUNDS = 60
_PAIRS = 60_000
"""Effort: pairs of groups that are priced, over all rounds; then groups only grow into what is left."""
_NEIGHBOUR_PAIRS = 8_000
"""Effort: moves of a gainer times its neighbours."""
_EVERY_CHOICE = 24
"""Up to so many counts of a group are all tried; beyond, steps of 1, 2, 4, ..."""
_NEGLIGIBLE = 1e-12  # of the objective


@dataclass(frozen=True)
class _Exchange:
    """Moves (group, place), what they change the objective by (below 0), and what they add to the bounded side."""

    moves: tuple[tuple[int, int], ...]
    gain: float
    used: float


def improve(found: Architecture, limit: float, bounded: Bounded = "cost") -> None:
    """Move to better architectures within the limit, in place, until no exchange of two groups is better.

    Args:
        found: within the limit.
        limit: on its cost or its loss, as `bounded` says; the other is lowered.
    """
    groups = len(found.choice)
    pairs, neighbour_pairs = _PAIRS, _NEIGHBOUR_PAIRS
    for _ in range(_ROUNDS):
        exchanges = list(_exchanges(found, limit, bounded, paid=pairs > 0))
        pairs -= groups**2
        if not exchanges and neighbour_pairs > 0:
            neighbour_pairs -= _neighbour_effort(found, limit, bounded)
            exchanges = list(_neighbour_exchanges(found, limit, bounded)) if neighbour_pairs > 0 else []
        if not exchanges:
            return
        _apply(found, exchanges, limit, bounded)


def _apply(found: Architecture, exchanges: list[_Exchange], limit: float, bounded: Bounded) -> None:
    """The best of them, and of the others those whose prices it leaves as they were."""
    touched: set[int] = set()
    for exchange in sorted(exchanges, key=lambda one: one.gain):
        groups = {group for group, _ in exchange.moves}
        slack = limit - (found.cost if bounded == "cost" else found.loss)
        if groups & touched or exchange.used > slack:
            continue
        for group, place in exchange.moves:
            found.move(group, place)
            touched |= {group, *found.table.neighbours[group]}


@dataclass(frozen=True, eq=False)
class _Side:
    """One group's places outwards from its own, in one direction.

    Attributes:
        places: (steps,).
        objective, used: changes of the side that is lowered and of the bounded one, (steps,).
    """

    places: NDArray[np.int64]
    objective: NDArray[np.float64]
    used: NDArray[np.float64]

    @classmethod
    def of(cls, found: Architecture, group: int, bounded: Bounded, *, gains: bool) -> _Side:
        own, last = found.choice[group], len(found.table.choices[group].counts)
        grows = gains == (bounded == "cost")
        places = np.arange(own + 1, last) if grows else np.arange(own - 1, -1, -1)
        cost, loss = found.cost_changes(group)[places], found.loss_changes(group)[places]
        return cls(places, *((loss, cost) if bounded == "cost" else (cost, loss)))

    def tried(self, slack: float) -> NDArray[np.int64]:
        """Steps that are tried as a gain: the largest that fits by itself among them."""
        steps = len(self.places)
        if steps <= _EVERY_CHOICE:
            return np.arange(steps)
        doubling = 2 ** np.arange(steps.bit_length()) - 1
        fits = int(np.searchsorted(self.used, slack, side="right")) - 1
        return np.unique(np.clip([*doubling, fits], 0, steps - 1))


def _slack_and_least(found: Architecture, limit: float, bounded: Bounded) -> tuple[float, float]:
    """What is left of the bound, and the change of the objective that counts."""
    used, objective = (found.cost, found.loss) if bounded == "cost" else (found.loss, found.cost)
    return limit - used, -_NEGLIGIBLE * max(abs(objective), 1e-300)


def _exchanges(found: Architecture, limit: float, bounded: Bounded, *, paid: bool) -> Iterator[_Exchange]:
    """For every group the best gain, alone or (if `paid`) with a payer that shares no tensor with it."""
    slack, least = _slack_and_least(found, limit, bounded)
    groups = range(len(found.choice))
    payers = {group: _Side.of(found, group, bounded, gains=False) for group in groups} if paid else {}
    for group in groups:
        side = _Side.of(found, group, bounded, gains=True)
        steps = side.tried(slack)
        if not steps.size:
            continue
        objective, used = side.objective[steps], side.used[steps]
        best = _best_alone(side, steps, slack, group)
        near = {group, *found.table.neighbours[group]}
        for payer, given in payers.items():
            if payer not in near and given.places.size:
                gain = _best_paid(given, payer, group, side.places[steps], objective, used, slack)
                best = min(best, gain, key=_gain)
        if best.gain < least:
            yield best


def _gain(exchange: _Exchange) -> float:
    return exchange.gain


_NOTHING = _Exchange((), 0.0, 0.0)


def _best_alone(side: _Side, steps: NDArray[np.int64], slack: float, group: int) -> _Exchange:
    fitting = steps[side.used[steps] <= slack]
    if not fitting.size:
        return _NOTHING
    step = fitting[side.objective[fitting].argmin()]
    return _Exchange(((group, int(side.places[step])),), float(side.objective[step]), float(side.used[step]))


def _best_paid(
    payer: _Side,
    payer_group: int,
    group: int,
    places: NDArray[np.int64],
    objective: NDArray[np.float64],
    used: NDArray[np.float64],
    slack: float,
) -> _Exchange:
    """The best of some gains, each with the least that this payer must give up for it."""
    step = np.searchsorted(-payer.used, used - slack)
    enough = step < len(payer.places)
    if not enough.any():
        return _NOTHING
    within = np.minimum(step, len(payer.places) - 1)
    change = np.where(enough, objective + payer.objective[within], np.inf)
    best = int(change.argmin())
    paid = int(within[best])
    moves = ((group, int(places[best])), (payer_group, int(payer.places[paid])))
    return _Exchange(moves, float(change[best]), float(used[best] + payer.used[paid]))


def _neighbour_effort(found: Architecture, limit: float, bounded: Bounded) -> int:
    slack, _ = _slack_and_least(found, limit, bounded)
    return sum(
        _Side.of(found, group, bounded, gains=True).tried(slack).size * len(neighbours)
        for group, neighbours in enumerate(found.table.neighbours)
    )


def _neighbour_exchanges(found: Architecture, limit: float, bounded: Bounded) -> Iterator[_Exchange]:
    """For every group the best gain that a group pays for which shares a tensor with it."""
    slack, least = _slack_and_least(found, limit, bounded)
    for group, own in enumerate(list(found.choice)):
        side, best = _Side.of(found, group, bounded, gains=True), _NOTHING
        steps = side.tried(slack)
        for step in steps[side.used[steps] > slack] if bounded == "cost" else steps:
            found.move(group, int(side.places[step]))
            for payer in found.table.neighbours[group]:
                given = _Side.of(found, payer, bounded, gains=False)
                if given.places.size:
                    one = slice(step, step + 1)
                    gain = _best_paid(
                        given, payer, group, side.places[one], side.objective[one], side.used[one], slack
                    )
                    best = min(best, gain, key=_gain)
            found.move(group, own)
        if best.gain < least:
            yield best
