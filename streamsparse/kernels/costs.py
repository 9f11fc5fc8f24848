"""Costs of every architecture that channel counts describe, without touching a model.

A tensor's size is a product over its dimensions, and along one dimension a kept channel contributes a fixed number
of entries:

    numel(counts) = Π_d ( untouched_d + Σ_classes entries_{d,class} · count_class )

Every weight element is used once per output position, so the MACs of a layer are its weight's size times a
constant. A *class* holds the positions of one channel group that contribute alike to every tensor; nearly every
group is one class. The counts of a group with several classes do not determine its costs: `from_counts` then
assumes that each class keeps its share (`exact` tells), `of_keep` is exact always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike, NDArray

from streamsparse.errors import UsageError
from streamsparse.types import Costs

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = Mapping[str, int]

_QUANTITIES = ("parameters", "macs", "bytes")


def tensor_sizes(
    class_counts: Float64[np.ndarray, "*architectures classes"],
    untouched: Float64[np.ndarray, "tensors dims"],
    entries: Float64[np.ndarray, "tensors dims classes"],
) -> Float64[np.ndarray, "*architectures tensors"]:
    """Number of elements of every tensor, for many architectures at once.

    Args:
        class_counts: kept positions, (..., classes).
        untouched: entries that no group cuts, (tensors, dims); 1 where a tensor has fewer dimensions.
        entries: entries per kept position, (tensors, dims, classes).

    Returns:
        (..., tensors)
    """
    sizes = np.ones((*class_counts.shape[:-1], untouched.shape[0]))
    for dim in range(untouched.shape[1]):
        sizes *= untouched[:, dim] + class_counts @ entries[:, dim, :].T
    return sizes


@dataclass(frozen=True, eq=False)
class CostModel:
    """Parameters, MACs and bytes as functions of the channels kept per group.

    Attributes:
        groups: group names, in the order of the last axis of `counts` arrays.
        sizes: positions per group.
        classes: `classes[g][p]` is the class (column of `entries`) of position p of group g.
        tensors: name of every distinct parameter and persistent buffer.
        untouched: entries that no group cuts, (tensors, dims).
        entries: entries per kept position, (tensors, dims, classes).
        parameters_per_element: 1 for a parameter, 0 for a buffer, (tensors,).
        bytes_per_element: (tensors,).
        macs_per_element: multiply-accumulates per weight element and image, (tensors,).
        constant_macs: of products without a weight (attention), per image.
    """

    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]
    tensors: tuple[str, ...]
    untouched: Float64[np.ndarray, "tensors dims"]
    entries: Float64[np.ndarray, "tensors dims classes"]
    parameters_per_element: Float64[np.ndarray, tensors]
    bytes_per_element: Float64[np.ndarray, tensors]
    macs_per_element: Float64[np.ndarray, tensors]
    constant_macs: int

    @property
    def exact(self) -> bool:
        """Whether the count of every group determines the costs."""
        return all(len(set(classes)) == 1 for classes in self.classes)

    @overload
    def parameters(self, counts: Counts) -> int: ...
    @overload
    def parameters(self, counts: NDArray[Any]) -> Integers: ...
    def parameters(self, counts: Counts | NDArray[Any]) -> int | Integers:
        """Number of parameters for kept counts: a mapping (absent groups are whole) or (..., groups)."""
        return _plain(counts, self._total(counts, self.parameters_per_element))

    @overload
    def macs(self, counts: Counts) -> int: ...
    @overload
    def macs(self, counts: NDArray[Any]) -> Integers: ...
    def macs(self, counts: Counts | NDArray[Any]) -> int | Integers:
        """Multiply-accumulates per image for kept counts, as `parameters`."""
        return _plain(counts, self._total(counts, self.macs_per_element, self.constant_macs))

    @overload
    def bytes(self, counts: Counts) -> int: ...
    @overload
    def bytes(self, counts: NDArray[Any]) -> Integers: ...
    def bytes(self, counts: Counts | NDArray[Any]) -> int | Integers:
        """Bytes of parameters and persistent buffers for kept counts, as `parameters`."""
        return _plain(counts, self._total(counts, self.bytes_per_element))

    def costs(self, counts: Counts) -> Costs:
        """All three for one architecture; groups absent from `counts` are whole."""
        return Costs(self.parameters(counts), self.macs(counts), self.bytes(counts))

    def costs_of_keep(self, keep: Mapping[str, Sequence[int]]) -> Costs:
        """Exact costs for the positions kept per group; groups absent from `keep` are whole."""
        by_module = self.costs_by_module(keep).values()
        parameters, macs, size_bytes = (sum(getattr(part, name) for part in by_module) for name in _QUANTITIES)
        return Costs(parameters, macs + self.constant_macs, size_bytes)

    def costs_by_module(self, keep: Mapping[str, Sequence[int]]) -> dict[str, Costs]:
        """`costs_of_keep` for every module that owns a tensor, by path; without the constant MACs."""
        self._known(keep)
        class_counts = np.zeros(self.entries.shape[2])
        for name, size, classes in zip(self.groups, self.sizes, self.classes, strict=True):
            positions = set(keep.get(name, range(size)))
            if not positions <= set(range(size)):
                raise _count_error(name, sorted(positions - set(range(size))), f"positions from 0 to {size - 1}")
            np.add.at(class_counts, [classes[position] for position in positions], 1)
        sizes = tensor_sizes(class_counts, self.untouched, self.entries)
        weights = (self.parameters_per_element, self.macs_per_element, self.bytes_per_element)
        table = np.stack([sizes * weight for weight in weights], axis=1)  # (tensors, quantities)
        totals: dict[str, Floats] = {}
        for tensor, row in zip(self.tensors, table, strict=True):
            path = tensor.rpartition(".")[0]
            totals[path] = totals.get(path, np.zeros(len(weights))) + row
        return {path: Costs(*(round(float(value)) for value in row)) for path, row in totals.items()}

    def _total(self, counts: Counts | NDArray[Any], weight: Floats, constant: int = 0) -> Integers:
        table = np.asarray(self._row(counts) if isinstance(counts, Mapping) else counts, dtype=np.float64)
        self._check(table)
        sizes = tensor_sizes(table @ self._shares(), self.untouched, self.entries)
        return np.asarray(np.rint(sizes @ weight), dtype=np.int64) + constant

    def _row(self, counts: Counts) -> list[int]:
        self._known(counts)
        return [counts.get(name, size) for name, size in zip(self.groups, self.sizes, strict=True)]

    def _known(self, names: Mapping[str, object]) -> None:
        for name in names:
            if name not in self.groups:
                raise _count_error(name, "a name that is none of the groups", ", ".join(self.groups) or "no name")

    def _check(self, table: Floats) -> None:
        if table.shape[-1:] != (len(self.groups),):
            raise _count_error("counts", f"shape {table.shape}", f"a last axis of {len(self.groups)} groups")
        outside = (table < 0) | (table > np.asarray(self.sizes)) | (table != np.rint(table))
        if outside.any():
            group = int(np.argwhere(outside)[0][-1])
            raise _count_error(
                self.groups[group], table[outside].flat[0], f"a whole number from 0 to {self.sizes[group]}"
            )

    def _shares(self) -> Floats:
        """Share of every class in its group, (groups, classes): count of a class = count of its group · share."""
        shares = np.zeros((len(self.groups), self.entries.shape[2]))
        for row, (size, classes) in enumerate(zip(self.sizes, self.classes, strict=True)):
            np.add.at(shares[row], list(classes), 1 / size)
        return shares

    def tensor_widths(self, counts: Counts | NDArray[Any], tensors: Sequence[str]) -> Floats:
        """Sizes of the named tensors' dimensions for kept counts, (..., tensors, dims), 1 where there are fewer.

        Args:
            counts: a mapping (absent groups are whole) or (..., groups).
            tensors: names out of `self.tensors`.
        """
        table = np.asarray(self._row(counts) if isinstance(counts, Mapping) else counts, dtype=np.float64)
        self._check(table)
        places = [self.tensors.index(name) for name in tensors]
        kept = np.einsum("...c,tdc->...td", table @ self._shares(), self.entries[places])
        widths: Floats = self.untouched[places] + kept
        return widths

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object; `from_json` is its inverse."""
        rows, dims, columns = np.nonzero(self.entries)
        return {
            "groups": list(self.groups),
            "sizes": list(self.sizes),
            "classes": [list(classes) for classes in self.classes],
            "tensors": list(self.tensors),
            "untouched": self.untouched.astype(int).tolist(),
            "entries": [
                [int(row), int(dim), int(column), int(self.entries[row, dim, column])]
                for row, dim, column in zip(rows, dims, columns, strict=True)
            ],
            "class_count": self.entries.shape[2],
            "parameters_per_element": self.parameters_per_element.astype(int).tolist(),
            "bytes_per_element": self.bytes_per_element.astype(int).tolist(),
            "macs_per_element": self.macs_per_element.tolist(),
            "constant_macs": self.constant_macs,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostModel:
        """Rebuild what `to_json` gave."""
        untouched = _floats(data["untouched"]).reshape(len(data["tensors"]), -1)
        entries = np.zeros((*untouched.shape, data["class_count"]))
        for row, dim, column, amount in data["entries"]:
            entries[row, dim, column] = amount
        return cls(
            groups=tuple(data["groups"]),
            sizes=tuple(data["sizes"]),
            classes=tuple(tuple(classes) for classes in data["classes"]),
            tensors=tuple(data["tensors"]),
            untouched=untouched,
            entries=entries,
            parameters_per_element=_floats(data["parameters_per_element"]),
            bytes_per_element=_floats(data["bytes_per_element"]),
            macs_per_element=_floats(data["macs_per_element"]),
            constant_macs=int(data["constant_macs"]),
        )


def _plain(counts: object, total: Integers) -> int | Integers:
    return int(total) if isinstance(counts, Mapping) else total


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _count_error(where: str, got: object, expected: str) -> UsageError:
    return UsageError(
        "Kept channels do not fit the channel groups.",
        expected=expected,
        got=got,
        where=where,
        remedy="Give the number (or the positions) of channels to keep for groups of this model.",
    )
