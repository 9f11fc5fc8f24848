"""What a plan respects beside its budget: round counts, least counts, positions that stay or go, layers left."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamsparse.errors import UsageError
from streamsparse.types import ChannelGraph, ChannelGroup

Positions = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Constraints:
    """Bounds on every group's count and support, whatever chooses them: a budget or counts by hand.

    Attributes:
        round_to: every count is a multiple of it, or the whole group; hardware likes multiples of 8.
        min_channels: every group keeps at least so many positions (a whole number from 1), or at least this
            fraction of them (below 1); smaller groups stay whole.
        keep, drop: positions that stay, and that go, by group.
        leave: patterns of layer paths (`*` and `?` match anything): groups that cut a tensor of such a layer or of
            a layer inside it, as its outputs, its inputs or on the way, stay whole.

    Raises:
        UsageError: numbers out of range, or positions that are to stay and to go.
    """

    round_to: int = 1
    min_channels: float = 1
    keep: Positions = field(default_factory=dict)
    drop: Positions = field(default_factory=dict)
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, lists in (("keep", self.keep), ("drop", self.drop)):
            object.__setattr__(self, name, {group: tuple(sorted({*own})) for group, own in lists.items() if own})
        object.__setattr__(self, "leave", tuple(self.leave))
        if self.round_to < 1 or self.round_to != int(self.round_to):
            raise UsageError(
                "Counts cannot be rounded to that.",
                expected="a whole number from 1 up",
                got=self.round_to,
                where="--round-to",
            )
        if not self.min_channels > 0 or (self.min_channels >= 1 and self.min_channels % 1 != 0):  # inf % 1 is nan
            raise UsageError(
                "This least number of channels does not make sense.",
                expected="a whole number from 1 up, or a fraction below 1",
                got=self.min_channels,
                where="--min-channels",
            )
        for group, kept in self.keep.items():
            both = sorted(set(kept) & set(self.drop.get(group, ())))
            if both:
                raise UsageError(
                    f"Positions of group '{group}' are to stay and to go.",
                    expected="each position in one of the lists",
                    got=both,
                    where="--keep, --drop",
                )

    @property
    def listed(self) -> tuple[str, ...]:
        """Groups with positions to keep or to drop: their fronts are others."""
        return tuple(dict.fromkeys([*self.keep, *self.drop]))

    def lists_of(self, group: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sorted positions to keep and to drop."""
        kept, dropped = self.keep.get(group, ()), self.drop.get(group, ())
        return np.array(kept, dtype=np.int64), np.array(dropped, dtype=np.int64)

    def of(self, groups: Collection[str]) -> Constraints:
        """Without lists of other groups than these: of those that stay whole nothing is chosen."""
        keep, drop = (
            {name: own for name, own in lists.items() if name in groups} for lists in (self.keep, self.drop)
        )
        return replace(self, keep=keep, drop=drop)

    def least_count(self, size: int) -> int:
        """Positions that a group of this size keeps at least."""
        fraction = self.min_channels * size - 1e-9  # 0.07 of 100 are 7, in binary too
        least = math.ceil(fraction) if self.min_channels < 1 else int(self.min_channels)
        return max(1, min(least, size))

    def allowed(self, group: str, size: int) -> NDArray[np.int64]:
        """Counts that the group may have, ascending.

        Raises:
            UsageError: there is none.
        """
        kept, dropped = len(self.keep.get(group, ())), len(self.drop.get(group, ()))
        least, most = max(self.least_count(size), kept), size - dropped
        counts: NDArray[np.int64] = np.arange(least, most + 1)
        counts = counts[(counts % self.round_to == 0) | (counts == size)]
        if not counts.size:
            raise UsageError(
                f"No count of group '{group}' respects all constraints.",
                expected=f"{least} to {most} of {size} positions"
                + (f", a multiple of {self.round_to}" if self.round_to > 1 else ""),
                got="no such number",
                where="--round-to, --min-channels, --keep, --drop",
                remedy=f"loosen one of them for this group, or leave it alone with --leave {group}",
            )
        return np.asarray(counts)

    def check(self, sizes: Mapping[str, int], whole: Mapping[str, str]) -> None:
        """Refuse lists that do not fit the groups.

        Args:
            sizes: positions of every group.
            whole: groups that stay whole, and why.

        Raises:
            UsageError: unknown groups, positions out of range, positions to drop of a group that stays whole, or a
                group that no count suits.
        """
        for option, lists in (("--keep", self.keep), ("--drop", self.drop)):
            for group, positions in lists.items():
                _check_positions(option, group, positions, sizes)
        for group in self.drop:
            if group in whole:
                raise UsageError(
                    f"Group '{group}' stays whole.",
                    expected="no positions to drop",
                    got=f"--drop {group}=...; {whole[group]}",
                    where="--drop",
                )
        for group, size in sizes.items():
            if group not in whole:
                self.allowed(group, size)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object."""
        return asdict(self)


def _check_positions(option: str, group: str, positions: tuple[int, ...], sizes: Mapping[str, int]) -> None:
    if group not in sizes:
        raise UsageError(
            f"There is no channel group '{group}'.",
            expected=", ".join(sizes),
            got=group,
            where=option,
            remedy="`streamsparse inspect --groups` lists them",
        )
    outside = [position for position in positions if not 0 <= position < sizes[group]]
    if outside:
        raise UsageError(
            f"Group '{group}' has no such positions.",
            expected=f"0 to {sizes[group] - 1}",
            got=outside,
            where=option,
        )


def left_groups(graph: ChannelGraph, patterns: tuple[str, ...]) -> dict[str, str]:
    """Groups that stay whole because of `--leave`, and why: one phrase that names a layer.

    Raises:
        UsageError: a pattern that matches no layer of any group.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        hits = {
            group.name: layer
            for group in graph.groups
            for layer in reversed(_layers(group))
            if any(fnmatchcase(path, pattern) for path in _with_containers(layer))
        }
        if not hits:
            known = list(dict.fromkeys(layer for group in graph.groups for layer in _layers(group)))
            raise UsageError(
                "No layer that could be cut has this path.",
                expected="a layer, or a pattern such as 'layer4.*': "
                + ", ".join(known[:12])
                + ", ..." * (len(known) > 12),
                got=pattern,
                where="--leave",
                remedy="`streamsparse inspect --groups` lists them",
            )
        for group, layer in hits.items():
            found.setdefault(group, f"it is cut in '{layer}', which --leave {pattern} leaves alone")
    return found


def _layers(group: ChannelGroup) -> list[str]:
    """Paths of the modules whose tensors the group cuts, producers first."""
    return list(dict.fromkeys([part.tensor.rpartition(".")[0] for part in group.slices]))


def _with_containers(layer: str) -> list[str]:
    parts = layer.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]
