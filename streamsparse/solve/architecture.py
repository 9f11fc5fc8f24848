"""One architecture among all that a budget chooses from, and what every change of one group's count would cost.

A tensor's size is a product over its dimensions (see `kernels.costs`), so with all other groups as they are the
cost is a polynomial in one group's count: evaluated for all its counts at once, and kept until a group changes that
shares a tensor with it. Tensors that the same groups cut alike are one *row*, weighted with what they add up to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsparse.kernels.costs import CostModel

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Choices:
    """What one group may become, from the smallest to the largest.

    Attributes:
        group: name.
        counts: kept positions, ascending, (choices,).
        losses: predicted, strictly falling, (choices,).
        class_counts: kept positions per class of positions, (choices, classes); see `CostModel`.
    """

    group: str
    counts: NDArray[np.int64]
    losses: Floats
    class_counts: Floats

    @classmethod
    def of(
        cls,
        group: str,
        losses: Floats,
        costs: CostModel,
        allowed: NDArray[np.int64] | None = None,
        supports: Sequence[NDArray[np.int64]] | None = None,
    ) -> Choices:
        """The allowed counts, without those that predict no less loss than a smaller one.

        Args:
            losses: of every count, (positions + 1,).
            allowed: ascending; all from 1 if None.
            supports: positions that each count keeps; None if their classes are to be assumed in proportion.
        """
        counts = np.arange(1, len(losses)) if allowed is None else np.asarray(allowed)
        own = np.asarray(losses, dtype=np.float64)[counts]
        falling = np.concatenate([[True], own[1:] < np.minimum.accumulate(own)[:-1]])
        counts, own = counts[falling], own[falling]
        return cls(group, counts, own, _class_counts(group, counts, costs, supports))


def _class_counts(
    group: str, counts: NDArray[np.int64], costs: CostModel, supports: Sequence[NDArray[np.int64]] | None
) -> Floats:
    """(choices, classes of this group), in ascending order of the classes."""
    classes = np.asarray(costs.classes[costs.groups.index(group)])
    own = np.unique(classes)
    if supports is None or len(own) == 1:
        shares = np.array([(classes == one).mean() for one in own])
        return np.asarray(counts[:, None] * shares)
    return np.array(
        [[(classes[supports[count]] == one).sum() for one in own] for count in counts], dtype=np.float64
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows that one group cuts: their numbers, and entries per kept position, (rows, dims, classes)."""

    rows: NDArray[np.int64]
    entries: Floats


class CostTable:
    """One quantity of every architecture that some choices span.

    Attributes:
        choices: of every group that may change, in the order of their numbers.
        neighbours: for every group, those that share a tensor with it.
    """

    def __init__(self, costs: CostModel, quantity: str, choices: Sequence[Choices]) -> None:
        """Merge the tensors into rows.

        Args:
            quantity: "params", "macs" or "bytes".
            choices: of some groups; the others stay whole.
        """
        self.choices = tuple(choices)
        weights = {
            "params": costs.parameters_per_element,
            "macs": costs.macs_per_element,
            "bytes": costs.bytes_per_element,
        }[quantity]
        free = [np.unique(costs.classes[costs.groups.index(one.group)]) for one in choices]
        untouched = np.array(costs.untouched)
        changing = {one.group for one in choices}
        for name, classes in zip(costs.groups, costs.classes, strict=True):
            if name not in changing:
                untouched += costs.entries[:, :, list(classes)].sum(axis=2)
        columns = np.concatenate([*free, np.zeros(0)]).astype(np.int64)
        entries = costs.entries[:, :, columns]
        self.constant = float(costs.constant_macs if quantity == "macs" else 0)
        self.weights, self.untouched, merged = _merged(np.asarray(weights), untouched, entries)
        ends = np.cumsum([len(classes) for classes in free])
        self.parts = tuple(
            _part(merged[:, :, end - len(classes) : end]) for end, classes in zip(ends, free, strict=True)
        )
        touches = [set(part.rows.tolist()) for part in self.parts]
        self.neighbours = tuple(
            tuple(other for other, rows in enumerate(touches) if other != group and rows & own)
            for group, own in enumerate(touches)
        )


def _merged(weights: Floats, untouched: Floats, entries: Floats) -> tuple[Floats, Floats, Floats]:
    """Weights (rows,), untouched (rows, dims) and entries (rows, dims, classes) of the distinct tensors.

    Dimensions that nothing cuts go into the weight.
    """
    cut = (entries != 0).any(axis=2)  # (tensors, dims)
    weights = weights * np.where(cut, 1.0, untouched).prod(axis=1)
    untouched = np.where(cut, untouched, 1.0)
    table = np.concatenate([untouched[:, :, None], entries], axis=2)
    order = np.argsort(~cut, axis=1, kind="stable")  # dimensions that are cut come first
    depth = max(int(cut.sum(axis=1).max(initial=0)), 1)
    table = np.take_along_axis(table, order[:, :, None], axis=1)[:, :depth]
    distinct, place = np.unique(table.reshape(len(table), -1), axis=0, return_inverse=True)
    rows = distinct.reshape(len(distinct), depth, -1)
    summed = np.bincount(place.ravel(), weights=weights, minlength=len(distinct))
    return np.asarray(summed, dtype=np.float64), rows[:, :, 0], rows[:, :, 1:]


def _part(entries: Floats) -> _Part:
    rows = np.flatnonzero(entries.any(axis=(1, 2)))
    return _Part(rows, entries[rows])


class Architecture:
    """One choice per group, changed group by group.

    Attributes:
        table: what it is an architecture of.
        choice: place of every group's count among its choices.
        cost, loss: of the whole network.
    """

    def __init__(self, table: CostTable, choice: Sequence[int]) -> None:
        self.table = table
        self.choice = list(choice)
        self._sums = np.array(table.untouched)  # (rows, dims)
        for group, place in enumerate(self.choice):
            part = table.parts[group]
            self._sums[part.rows] += part.entries @ table.choices[group].class_counts[place]
        self.cost = table.constant + float(table.weights @ self._sums.prod(axis=1))
        self.loss = float(sum(one.losses[place] for one, place in zip(table.choices, self.choice, strict=True)))
        self._changes: dict[int, Floats] = {}

    def copy(self) -> Architecture:
        """One that changes on its own."""
        return Architecture(self.table, self.choice)

    @property
    def counts(self) -> dict[str, int]:
        """Kept positions by group."""
        return {
            one.group: int(one.counts[place]) for one, place in zip(self.table.choices, self.choice, strict=True)
        }

    def cost_changes(self, group: int) -> Floats:
        """What the cost would change by with each of the group's choices, (choices,); read only."""
        if group not in self._changes:
            costs = self._costs_of_rows(group)
            self._changes[group] = costs - costs[self.choice[group]]
        return self._changes[group]

    def loss_changes(self, group: int) -> Floats:
        """What the loss would change by with each of the group's choices, (choices,)."""
        losses = self.table.choices[group].losses
        changes: Floats = losses - losses[self.choice[group]]
        return changes

    def move(self, group: int, place: int) -> None:
        """Change one group's count."""
        part, choices = self.table.parts[group], self.table.choices[group]
        self.cost += float(self.cost_changes(group)[place])
        self.loss += float(choices.losses[place] - choices.losses[self.choice[group]])
        self._sums[part.rows] += part.entries @ (
            choices.class_counts[place] - choices.class_counts[self.choice[group]]
        )
        self.choice[group] = place
        for other in (group, *self.table.neighbours[group]):
            self._changes.pop(other, None)

    def _costs_of_rows(self, group: int) -> Floats:
        """Of the tensors that the group cuts, with each of its choices, (choices,)."""
        part, class_counts = self.table.parts[group], self.table.choices[group].class_counts
        weights = self.table.weights[part.rows]
        others = self._sums[part.rows] - part.entries @ class_counts[self.choice[group]]  # (rows, dims)
        if class_counts.shape[1] > 1:
            factors = others[:, :, None] + part.entries @ class_counts.T  # (rows, dims, choices)
            summed: Floats = weights @ factors.prod(axis=1)
            return summed
        coefficients = weights[:, None]  # of the powers of the count, (rows, powers)
        for dim in range(others.shape[1]):
            raised = np.zeros((len(coefficients), coefficients.shape[1] + 1))
            raised[:, :-1] = coefficients * others[:, dim, None]
            raised[:, 1:] += coefficients * part.entries[:, dim]
            coefficients = raised
        costs: Floats = np.polynomial.polynomial.polyval(class_counts[:, 0], coefficients.sum(axis=0))
        return costs
