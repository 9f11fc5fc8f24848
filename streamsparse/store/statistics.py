"""Committed statistics of a stream: a mapping from layer to its sums by fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import Tensor

from streamsparse.errors import CorruptDataError, StageMissingError
from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.gram_blocks import GramBlock, block_slices
from streamsparse.kernels.statistics import FIELDS, field_shapes
from streamsparse.store import layout
from streamsparse.store.at_once import at_once
from streamsparse.store.partials import fold_sums
from streamsparse.store.records import Draft, chunks_of
from streamsparse.store.run import Run
from streamsparse.types import LayerGeometry


@dataclass(frozen=True)
class Statistics(Mapping[str, FoldSums]):
    """Statistics of one stream, read layer by layer when asked for."""

    run: Run
    stream: str = layout.ORIGINAL_STREAM

    def __getitem__(self, layer: str) -> FoldSums:
        """The sums by fold, float64 on the CPU.

        Raises:
            KeyError: nothing is committed for this layer.
            CorruptDataError: it is damaged.
        """
        key = layout.statistics_key(self.stream, layer)
        record = self.run.records.read(key)
        if record is None:
            raise KeyError(layer)
        if set(record.arrays) != set(FIELDS):
            raise CorruptDataError(
                "A statistics record is incomplete.", expected=FIELDS, got=sorted(record.arrays), where=key
            )
        return fold_sums(record.arrays, record.description["folds"])

    def __iter__(self) -> Iterator[str]:
        for name in self.run.documents.names(f"statistics/{layout.part(self.stream)}"):
            layer = layout.name_of(name)
            if layer in self:
                yield layer

    def __contains__(self, layer: object) -> bool:
        """Whether the layer's statistics are committed; reads none of them."""
        return isinstance(layer, str) and self.run.records.exists(layout.statistics_key(self.stream, layer))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def require(self, layers: list[str]) -> Statistics:
        """These statistics, if every one of `layers` is there.

        Raises:
            StageMissingError: names those that are not.
        """
        missing = [layer for layer in layers if layer not in self]
        if missing:
            raise StageMissingError(
                "The statistics are not complete.",
                expected=f"{len(layers)} layers",
                got=f"{len(layers) - len(missing)}; missing: {', '.join(missing[:5])}",
                where=f"{self.run.url}, stream '{self.stream}'",
                remedy="run `streamsparse accumulate` (again: it resumes)",
            )
        return self

    def description(self, layer: str) -> dict[str, Any] | None:
        """How the layer's statistics were made, or None."""
        return self.run.records.description(layout.statistics_key(self.stream, layer))

    def draft(self, geometry: LayerGeometry, folds: int, generation: str, channels: int) -> StatisticsDraft:
        """Begin statistics that come block by block, or go on with a draft of the same generation.

        Args:
            geometry: of the layer.
            folds: of the sums.
            generation: 16 hexadecimal digits.
            channels: on the side of a block, over all its groups; chunks are blocks then.
        """
        draft = self.run.records.draft(layout.statistics_key(self.stream, geometry.layer), generation)
        return StatisticsDraft(draft, geometry, folds, channels)

    def patches(self, layer: str) -> int:
        """How many patches the layer's sums are over; reads nothing else of them. 0 if nothing is committed.

        Raises:
            CorruptDataError: the number is missing or damaged.
        """
        record = self.run.records.read(layout.statistics_key(self.stream, layer), ["count"])
        return 0 if record is None else round(float(record.arrays["count"].sum()))

    def write(self, geometry: LayerGeometry, sums: FoldSums, description: dict[str, Any]) -> None:
        """Commit the statistics of one layer, replacing what was there."""
        arrays = {name: np.stack([getattr(part, name).cpu().numpy() for part in sums]) for name in FIELDS}
        about = {**description, "folds": len(sums), "geometry": asdict(geometry)}
        self.run.records.write(layout.statistics_key(self.stream, geometry.layer), about, arrays)


@dataclass(frozen=True)
class StatisticsDraft:
    """Statistics of one layer while they are written; they count from `commit` on."""

    draft: Draft
    geometry: LayerGeometry
    folds: int
    channels: int

    def create(self) -> None:
        """Create the arrays; once, before others write into them."""
        width = self.geometry.in_channels // self.geometry.groups
        groups = max(1, self.channels // width)
        rows = min(width, self.channels) * self.geometry.taps
        sides = {"gram": (groups, rows, rows), "cross": (groups, rows, None), "sum_x": (groups, rows)}

        def create(field: tuple[str, tuple[int, ...]]) -> None:
            name, shape = field
            chunks = chunks_of(shape, 8)
            if self.channels < self.geometry.in_channels:
                largest = [size if side is None else side for side, size in zip_longest(sides.get(name, ()), shape)]
                chunks = tuple(min(side, size) for side, size in zip(largest, shape, strict=True))
            self.draft.create(name, (self.folds, *shape), np.float64, (1, *chunks))

        at_once(self.draft.store, create, field_shapes(self.geometry).items())

    def put(self, fold: int, block: GramBlock, finished: Mapping[str, Tensor]) -> None:
        """Write what `finish_block` made of one fold; the half below the diagonal is filled in."""

        def put(field: tuple[str, tuple[slice, ...]]) -> None:
            name, where = field
            values = finished[name].cpu().numpy()
            self.draft.put(name, values, (fold, *where))
            if name == "gram" and not block.diagonal:
                groups, rows, columns = where
                self.draft.put(name, values.transpose(0, 2, 1), (fold, groups, columns, rows))

        at_once(self.draft.store, put, block_slices(self.geometry, block).items())

    def note(self, block: GramBlock) -> None:
        """All folds of the block are written."""
        self.draft.note(f"done/{block.name}")

    def noted(self, block: GramBlock) -> bool:
        """Whether all folds of the block are written."""
        return self.draft.noted(f"done/{block.name}")

    def drop(self) -> None:
        """Give up what was written."""
        self.draft.drop()

    def commit(self, description: dict[str, Any]) -> None:
        """Make these the layer's statistics, replacing what was there."""
        about = {**description, "folds": self.folds, "geometry": asdict(self.geometry)}
        self.draft.commit(FIELDS, about)
