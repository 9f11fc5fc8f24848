"""Lanes: sums of an accumulation that grow batch by batch and outlive the worker that adds to them.

    LANE/00000004-WRITING/     record: the sums of four batches, and which these are
    LANE/00000009-WRITING/     a later one; it counts, and whoever commits it deletes those with fewer

Nothing is replaced: the writing with the most batches counts. So a worker that was given up for lost and comes
back, or a write of it that a network delivers late, cannot undo what others added since; and batches may be
discarded once a lane holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from streamsparse.store.at_once import at_once
from streamsparse.store.batches import Batch
from streamsparse.store.run import Run

Included = dict[str, str]
"""Batches in the order in which they were added: name -> beginning of the digest of its images."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a lane held at one moment: its sums and the batches that are in just these sums.

    Another writer may replace the lane meanwhile; reading the sums then fails, and `Lane.replaced` says so.
    """

    run: Run
    key: str
    description: dict[str, Any]

    @property
    def included(self) -> Included:
        """The batches in the sums, as a new dictionary."""
        return dict(self.description.get("included", {}))

    @property
    def folds(self) -> int:
        """How many folds the sums have; 0 if the description does not say."""
        found = self.description.get("folds")
        return found if isinstance(found, int) else 0

    def fold(self, number: int) -> dict[str, Tensor]:
        """The sums of one fold by name, float64.

        Raises:
            CorruptDataError: they are damaged, or no longer there.
        """

        def read(name: str) -> Tensor:
            return torch.from_numpy(self.run.records.array(self.key, self.description, name, number))

        names = list(self.description.get("arrays", ()))
        return dict(zip(names, at_once(self.run.store, read, names), strict=True))

    def all_folds(self) -> list[dict[str, Tensor]]:
        """Every fold's sums; see `fold`."""
        return at_once(self.run.store, self.fold, range(self.folds))


@dataclass(frozen=True)
class Lane:
    """One lane of a run."""

    run: Run
    key: str

    def snapshot(self) -> Snapshot | None:
        """What the lane holds now, or None; reads no sums."""
        names = self.run.documents.names(self.key)
        while True:
            found = next(filter(None, map(self._writing, reversed(names))), None)
            if found is not None and found.key.endswith(names[-1]):
                return found
            again = self.run.documents.names(self.key)  # a name without a record: a draft, or it was just deleted
            if again == names:
                return found
            names = again

    def _writing(self, name: str) -> Snapshot | None:
        key = f"{self.key}/{name}"
        description = self.run.records.description(key)
        return None if description is None else Snapshot(self.run, key, description)

    def replaced(self, snapshot: Snapshot | None) -> bool:
        """Whether somebody has written the lane since."""
        now = self.snapshot()
        return (now and now.key) != (snapshot and snapshot.key)

    def write(self, folds: Sequence[Mapping[str, Tensor]], included: Included) -> None:
        """Commit sums and the list of their batches as one step, and delete what holds fewer."""
        own = f"{len(included):08d}-{uuid4().hex[:16]}"
        draft = self.run.records.draft(f"{self.key}/{own}")

        def write(name: str) -> None:
            shape = tuple(folds[0][name].shape)
            draft.create(name, (len(folds), *shape), np.float64, _fold_chunks(shape))
            for number, fold in enumerate(folds):
                draft.put(name, fold[name].cpu().numpy(), (number,))

        at_once(self.run.store, write, folds[0])
        draft.commit(list(folds[0]), {"folds": len(folds), "included": included})
        for name in self.run.documents.names(self.key):
            # a draft that is not committed is left to its writer: it would be committed without its sums
            if name < own and self.run.records.exists(f"{self.key}/{name}"):
                self.run.documents.delete(f"{self.key}/{name}")


def batch_name(batch: Batch) -> str:
    """Unique in a stream: shard and number of the batch."""
    return f"{batch.shard.rpartition('/')[2]}/{batch.index}"


def included_digest(batch: Batch) -> str:
    """What a lane remembers of a batch's images."""
    return batch.digest[:16]


def _fold_chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One fold, in pieces of at most 64 MiB along its first dimension."""
    if not shape:
        return (1,)
    row_bytes = 8 * int(np.prod(shape[1:], dtype=np.int64))
    return (1, max(1, min(shape[0], 64 * 2**20 // max(1, row_bytes))), *shape[1:])
