"""One architecture among all that a budget chooses from, and what every change of one group's count would cost.

A network's cost is a sum over *rows*, each a function of its widths. A row of parameters, MACs or bytes is a
tensor, or several that the same groups cut alike, and costs the product of its widths (`kernels.costs`): with all
other groups as they are a polynomial in one group's count. A row of a latency is a layer with its table. Costs of
all of a group's counts are found at once, and kept until a group changes that shares a row with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsparse.kernels.costs import CostModel
from streamsparse.kernels.latencies import LatencyModel

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


class PriceTable(ABC):
    """What every architecture costs that some choices span: a sum over rows, each a function of its widths.

    Attributes:
        choices: of every group that may change, in the order of their numbers.
        untouched: widths of the rows that no choice changes, (rows, dims).
        parts: the rows of every group.
        neighbours: for every group, those that share a row with it.
    """

    def __init__(self, choices: Sequence[Choices], untouched: Floats, entries: Sequence[Floats]) -> None:
        """
        Args:
            choices: of some groups; the others stay whole.
            untouched: (rows, dims).
            entries: of every choice's group, (rows, dims, classes).
        """
        self.choices, self.untouched = tuple(choices), untouched
        self.parts = tuple(map(_part, entries))
        touches = [set(part.rows.tolist()) for part in self.parts]
        self.neighbours = tuple(
            tuple(other for other, rows in enumerate(touches) if other != group and rows & own)
            for group, own in enumerate(touches)
        )

    @abstractmethod
    def total(self, widths: Floats) -> float:
        """The cost at these widths of all rows, (rows, dims)."""

    @abstractmethod
    def of_rows(self, part: _Part, others: Floats, class_counts: Floats) -> Floats:
        """What a group's rows cost with each of its choices, (choices,).

        Args:
            part: the group's.
            others: their widths without the group, (rows, dims).
            class_counts: of its choices, (choices, classes).
        """


class CostTable(PriceTable):
    """Parameters, MACs or bytes: a row's cost is the product of its widths."""

    def __init__(self, costs: CostModel, quantity: str, choices: Sequence[Choices]) -> None:
        """Merge the tensors into rows.

        Args:
            quantity: "params", "macs" or "bytes".
            choices: of some groups; the others stay whole.
        """
        weights = {
            "params": costs.parameters_per_element,
            "macs": costs.macs_per_element,
            "bytes": costs.bytes_per_element,
        }[quantity]
        untouched, entries = changing_widths(costs, choices)
        ends = np.cumsum([part.shape[2] for part in entries])
        joined = np.concatenate([*entries, np.zeros((*untouched.shape, 0))], axis=2)
        self.constant = float(costs.constant_macs if quantity == "macs" else 0)
        self.weights, untouched, merged = _merged(np.asarray(weights), untouched, joined)
        parts = [merged[:, :, end - part.shape[2] : end] for end, part in zip(ends, entries, strict=True)]
        super().__init__(choices, untouched, parts)

    def total(self, widths: Floats) -> float:
        """The cost of the whole network."""
        return self.constant + float(self.weights @ widths.prod(axis=1))

    def of_rows(self, part: _Part, others: Floats, class_counts: Floats) -> Floats:
        """By polynomials in the count where the group is of one class."""
        weights = self.weights[part.rows]
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


class LatencyTable(PriceTable):
    """Nanoseconds of a forward pass: a row is a layer, its widths are its outputs and inputs."""

    def __init__(self, model: LatencyModel, choices: Sequence[Choices]) -> None:
        """
        Args:
            model: measured.
            choices: of some groups; the others stay whole.
        """
        self._prices = model.prices()
        untouched, entries = changing_widths(model.costs, choices)
        places = [model.costs.tensors.index(name) for name in model.weights]
        super().__init__(choices, untouched[places, :2], [part[places, :2] for part in entries])

    def total(self, widths: Floats) -> float:
        """The latency of the whole network."""
        return 1e9 * sum(float(price(*row)) for price, row in zip(self._prices, widths, strict=True))

    def of_rows(self, part: _Part, others: Floats, class_counts: Floats) -> Floats:
        """Layer by layer."""
        widths = others[:, :, None] + part.entries @ class_counts.T  # (rows, dims, choices)
        seconds = [self._prices[row](*own) for row, own in zip(part.rows, widths, strict=True)]
        nanoseconds: Floats = 1e9 * np.sum(seconds, axis=0)
        return nanoseconds


def changing_widths(costs: CostModel, choices: Sequence[Choices]) -> tuple[Floats, list[Floats]]:
    """Of every tensor what no choice changes, (tensors, dims), and by choice entries, (tensors, dims, classes)."""
    untouched = np.array(costs.untouched)
    changing = {one.group for one in choices}
    for name, classes in zip(costs.groups, costs.classes, strict=True):
        if name not in changing:
            untouched += costs.entries[:, :, list(classes)].sum(axis=2)
    own = [np.unique(costs.classes[costs.groups.index(one.group)]) for one in choices]
    return untouched, [costs.entries[:, :, classes] for classes in own]


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

    def __init__(self, table: PriceTable, choice: Sequence[int]) -> None:
        self.table = table
        self.choice = list(choice)
        self._sums = np.array(table.untouched)  # (rows, dims)
        for group, place in enumerate(self.choice):
            part = table.parts[group]
            self._sums[part.rows] += part.entries @ table.choices[group].class_counts[place]
        self.cost = table.total(self._sums)
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
        """Of the rows that the group cuts, with each of its choices, (choices,)."""
        part, class_counts = self.table.parts[group], self.table.choices[group].class_counts
        others = self._sums[part.rows] - part.entries @ class_counts[self.choice[group]]  # (rows, dims)
        return self.table.of_rows(part, others, class_counts)
