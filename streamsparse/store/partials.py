"""Sums of a capture that dumps nothing: two slots in turn, so that a kill leaves the last whole one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streamsparse.errors import CorruptDataError
from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.statistics import FIELDS, Sums
from streamsparse.store import layout
from streamsparse.store.growing import GrowingSums, growing_sums
from streamsparse.store.run import Run
from streamsparse.store.stream import StreamPlan, plan_from_json

_SLOTS = ("a", "b")


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a shard has come.

    Attributes:
        batches: the first so many batches of the shard are in the sums.
        first_digest: SHA-256 of the shard's first input batch.
        products: precision of the products.
        sums: by layer, in a mapping that may make them when asked.
    """

    batches: int
    first_digest: str
    products: str
    sums: Mapping[str, GrowingSums]


@dataclass(frozen=True)
class State:
    """What the committed sums of a shard are; zeros and nothing if there are none.

    Attributes:
        batches, first_digest, products: see `Progress`.
        folds: of the sums.
    """

    batches: int
    first_digest: str
    folds: int
    products: str


@dataclass(frozen=True)
class Partials:
    """The sums of one shard."""

    run: Run
    plan: StreamPlan

    @property
    def prefix(self) -> str:
        """Of the shard's keys."""
        return layout.partials_prefix(self.plan.stream, self.plan.shard, self.plan.shards)

    def begun_with(self) -> StreamPlan | None:
        """The plan that the shard was begun with, or None."""
        found = self._document()
        return None if found is None else plan_from_json(found["plan"])

    def batches(self) -> int:
        """Batches in the committed sums; reads no sums."""
        found = self._document()
        return 0 if found is None else int(found["batches"])

    def state(self) -> State:
        """Of the committed sums; reads no sums."""
        found = self._document() or {}
        layer = layout.part(self.plan.layers[0].geometry.layer)
        about = self.run.records.description(f"{self.prefix}/{found.get('slot')}/{layer}") or {}
        return State(
            batches=int(found.get("batches", 0)),
            first_digest=str(found.get("first_digest", "")),
            folds=int(about.get("folds", 0)),
            products=str(found.get("products", "")),
        )

    def write(self, progress: Progress) -> None:
        """Commit new sums into the slot that is not in use, then point to it."""
        found = self._document()
        slot = _SLOTS[0] if found is None or found["slot"] == _SLOTS[1] else _SLOTS[1]
        for layer, sums in progress.sums.items():
            sums.write(self.run.records.draft(f"{self.prefix}/{slot}/{layout.part(layer)}"))
        document = {
            "slot": slot,
            "batches": progress.batches,
            "first_digest": progress.first_digest,
            "products": progress.products,
            "plan": self.plan.to_json(),
        }
        self.run.documents.write_json(self._key, document)

    def replan(self) -> None:
        """Let the committed sums, which stay as they are, be those of this plan."""
        self.run.documents.write_json(self._key, {**(self._document() or {}), "plan": self.plan.to_json()})

    @property
    def _key(self) -> str:
        return f"{self.prefix}/progress.json"

    def _document(self) -> dict[str, Any] | None:
        return self.run.documents.read_json(self._key)

    def layer(self, layer: str) -> FoldSums:
        """The committed sums of one layer, finished.

        Raises:
            CorruptDataError: they are missing or damaged.
            ModelError: its outputs were not what they seemed on the first images, see `GrowingSums.finished`.
        """
        return self.growing(layer).finished()

    def growing(self, layer: str) -> GrowingSums:
        """The committed sums of one layer.

        Raises:
            CorruptDataError: they are missing or damaged.
        """
        key = f"{self.prefix}/{(self._document() or {}).get('slot')}/{layout.part(layer)}"
        record = self.run.records.read(key)
        if record is None:
            raise CorruptDataError(
                "Committed sums are missing.", expected=f"the sums of layer '{layer}'", got="nothing", where=key,
                remedy="capture this shard again with --overwrite",
            )  # fmt: skip
        geometry = {planned.geometry.layer: planned.geometry for planned in self.plan.layers}[layer]
        return growing_sums(geometry, record.arrays, record.description["folds"], key)


def fold_sums(arrays: Mapping[str, np.ndarray], folds: int) -> FoldSums:
    """Stacked arrays of a record as sums by fold."""
    return tuple(Sums(**{name: torch.from_numpy(arrays[name][fold]) for name in FIELDS}) for fold in range(folds))


def shards_with_partials(run: Run, stream: str) -> list[Partials]:
    """Every shard of the stream that has committed sums, by number."""
    found = []
    for name in run.documents.names(f"partials/{layout.part(stream)}"):
        if re.fullmatch(r"shard-\d+-of-\d+", name):
            document = run.documents.read_json(f"partials/{layout.part(stream)}/{name}/progress.json")
            if document is not None:
                found.append(Partials(run, plan_from_json(document["plan"])))
    return sorted(found, key=lambda partials: partials.plan.shard)
