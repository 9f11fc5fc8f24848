"""Channel labels: which channel every element of an activation belongs to, and which channels belong together.

Every channel that a layer makes is an *atom*, a positive integer. A tensor is labelled along one dimension (its
channel dimension): `Labels.atoms[c]` is the atom of entry c, `NO_CHANNEL` for entries that no layer made (zero
padding). Operations unite atoms that can only go together; the connected components are the channel classes.

One dimension is enough, and is what makes removal exact: deleting entries along one dimension commutes with a
reshape, a permutation or a concatenation. An operation whose result would be labelled along several dimensions
(a channel shuffle's `view`, a pixel shuffle) unites atoms until one dimension remains, see `collapse`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Atoms = NDArray[np.int64]
NO_CHANNEL = 0


@dataclass(frozen=True)
class Labels:
    """The atoms of one activation.

    Attributes:
        shape: of the activation.
        dim: its channel dimension, None if it carries no channel that can be removed.
        atoms: one atom per entry along `dim`, None when `dim` is.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    atoms: Atoms | None = None

    def __post_init__(self) -> None:
        assert (self.dim is None) == (self.atoms is None)
        assert self.dim is None or self.atoms is None or self.atoms.shape == (self.shape[self.dim],)

    def tensor(self) -> Tensor:
        """int64 labels in the activation's own shape, a view that takes the memory of `atoms` only."""
        if self.dim is None or self.atoms is None:
            return torch.zeros((), dtype=torch.int64).expand(self.shape)
        ones = [1] * len(self.shape)
        ones[self.dim] = -1
        return torch.from_numpy(self.atoms).view(ones).expand(self.shape)


@dataclass(frozen=True)
class Cause:
    """Why channels are frozen; fields as in `streamsparse.types.FrozenChannels`."""

    reason: str
    operation: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Classes:
    """The partition of the atoms.

    Attributes:
        of_atom: (atoms + 1,) class of every atom.
        cause: the first cause that froze a class; classes that are free are absent.
        approximate: why a class can be removed only approximately; exact classes are absent.
    """

    of_atom: Atoms
    cause: dict[int, Cause]
    approximate: dict[int, str]


@dataclass
class AtomTable:
    """All atoms of a model: who made them, which are united, which are frozen and why."""

    count: int = 1
    owners: list[tuple[int, str]] = field(default_factory=list)
    _united: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    _frozen: list[tuple[Atoms, Cause]] = field(default_factory=list)
    _approximate: list[tuple[Atoms, str]] = field(default_factory=list)

    def create(self, size: int, owner: str) -> Atoms:
        """`size` new atoms made by the layer `owner`."""
        first, self.count = self.count, self.count + size
        self.owners.append((first, owner))
        return np.arange(first, first + size, dtype=np.int64)

    def unite(self, left: Atoms, right: Atoms, cause: Cause) -> None:
        """left[i] and right[i] go together; an atom united with no channel is frozen for `cause`."""
        both = (left != NO_CHANNEL) & (right != NO_CHANNEL)
        differ = both & (left != right)
        if differ.any():
            self._united.append((left[differ], right[differ]))
        self.freeze(np.maximum(left, right)[~both], cause)

    def freeze(self, atoms: Atoms, cause: Cause) -> None:
        """Leave these atoms, and whatever is united with them, alone."""
        real = np.unique(atoms[atoms != NO_CHANNEL])
        if real.size:
            self._frozen.append((real, cause))

    def approximate(self, atoms: Atoms, why: str) -> None:
        """Removing these atoms changes the values of the others (a LayerNorm's statistics)."""
        self._approximate.append((atoms[atoms != NO_CHANNEL], why))

    def classes(self) -> Classes:
        """The connected components of everything united so far."""
        pairs = self._united or [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
        links = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(self.count, self.count))
        _, component = connected_components(links, directed=False)
        of_atom: Atoms = component.astype(np.int64)
        cause: dict[int, Cause] = {}
        for atoms, why in self._frozen:
            for one in np.unique(of_atom[atoms]).tolist():
                cause.setdefault(one, why)
        approximate: dict[int, str] = {}
        for atoms, text in self._approximate:
            for one in np.unique(of_atom[atoms]).tolist():
                approximate.setdefault(one, text)
        return Classes(of_atom, cause, approximate)


def collapse(labels: Tensor, table: AtomTable, cause: Cause) -> Labels:
    """`Labels` of a tensor of atoms; where it varies along several dimensions, atoms are united.

    The dimension that leaves the most classes stays the channel dimension (the innermost of equals): the
    (2, C/2) view of a channel shuffle stays labelled along C/2, a pixel shuffle along C.
    """
    shape = tuple(labels.shape)
    small, dims = _shrink(labels)
    if not dims:
        value = int(small.reshape(-1)[0]) if small.numel() else NO_CHANNEL
        # one atom everywhere: there is no dimension along which it can be removed
        table.freeze(np.array([value], np.int64), cause)
        return Labels(shape)
    array = small.numpy()
    dim = max(dims, key=lambda d: (_classes_along(array, d), d))
    rows = np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1)
    pairs = np.stack([np.repeat(rows[:, 0], rows.shape[1]), rows.reshape(-1)])
    left, right = np.unique(pairs, axis=1)
    table.unite(left, right, cause)
    return Labels(shape, dim, np.ascontiguousarray(rows[:, 0]))


def _shrink(labels: Tensor) -> tuple[Tensor, list[int]]:
    """The tensor with size 1 along every dimension it is constant in, and the other dimensions."""
    varying = []
    for dim in range(labels.dim()):
        if labels.size(dim) == 0:
            return labels.new_zeros([1] * labels.dim()), []
        first = labels.narrow(dim, 0, 1)
        if labels.size(dim) == 1 or labels.stride(dim) == 0 or bool((labels == first).all()):
            labels = first
        else:
            varying.append(dim)
    return labels, varying


def _classes_along(array: Atoms, dim: int) -> int:
    """How many classes remain if `dim` is to be the only labelled dimension."""
    rows = np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1)
    _, atoms = np.unique(rows, return_inverse=True)
    atoms = atoms.reshape(rows.shape) + rows.shape[0]
    source = np.repeat(np.arange(rows.shape[0]), rows.shape[1])
    size = int(atoms.max()) + 1
    links = coo_array((np.ones(source.size, np.int8), (source, atoms.reshape(-1))), shape=(size, size))
    count, _ = connected_components(links, directed=False)
    return int(count)
