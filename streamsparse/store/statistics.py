"""Committed statistics of a stream: a mapping from layer to its sums by fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamsparse.errors import CorruptDataError, StageMissingError
from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.statistics import FIELDS
from streamsparse.store import layout
from streamsparse.store.partials import fold_sums
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

    def write(self, geometry: LayerGeometry, sums: FoldSums, description: dict[str, Any]) -> None:
        """Commit the statistics of one layer, replacing what was there."""
        arrays = {name: np.stack([getattr(part, name).cpu().numpy() for part in sums]) for name in FIELDS}
        about = {**description, "folds": len(sums), "geometry": asdict(geometry)}
        self.run.records.write(layout.statistics_key(self.stream, geometry.layer), about, arrays)
