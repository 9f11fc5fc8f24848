"""Lanes: sums of an accumulation that grow batch by batch and outlive the worker that adds to them.

A lane is a record; its description lists the batches that are in its sums, so neither can be without the other.
Writers replace it whole. If two work on one lane (a worker that was given up for lost comes back), the later
writing counts, and it is right whichever it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamsparse.errors import CorruptDataError
from streamsparse.store.at_once import at_once
from streamsparse.store.batches import Batch
from streamsparse.store.run import Run

Included = dict[str, str]
"""Batches in the order in which they were added: name -> beginning of the digest of its images."""


@dataclass(frozen=True, eq=False)
class Progress:
    """What a lane holds.

    Attributes:
        folds: the accumulator's tensors by name, one mapping per fold, float64.
        included: the batches in them.
    """

    folds: tuple[dict[str, Tensor], ...]
    included: Included


@dataclass(frozen=True)
class Lane:
    """One lane of a run."""

    run: Run
    key: str

    def included(self) -> Included:
        """The batches in the committed sums; reads no sums."""
        return _included(self.run.records.description(self.key))

    def read(self) -> Progress | None:
        """The committed sums, or None.

        Raises:
            CorruptDataError: they are damaged.
        """
        description = self.run.records.description(self.key)
        if description is None:
            return None
        try:
            names, folds = list(description["arrays"]), int(description["folds"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(
                "The description of partial sums is not readable.",
                expected="entries 'arrays' and 'folds'",
                got=repr(error),
                where=self.key,
                remedy="delete the folder and run `streamsparse accumulate` again",
            ) from error
        store = self.run.store
        parts = tuple(at_once(store, lambda fold: self._fold(description, names, fold), range(folds)))
        return Progress(parts, _included(description))

    def fold(self, number: int) -> dict[str, Tensor]:
        """The committed sums of one fold."""
        description = self.run.records.description(self.key) or {}
        return self._fold(description, list(description.get("arrays", ())), number)

    def _fold(self, description: dict[str, Any], names: Sequence[str], fold: int) -> dict[str, Tensor]:
        records = self.run.records
        found = at_once(self.run.store, lambda name: records.array(self.key, description, name, fold), names)
        return {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)}

    def write(self, folds: Sequence[Mapping[str, Tensor]], included: Included) -> None:
        """Replace the sums and the list of their batches as one step."""
        draft = self.run.records.draft(self.key)

        def write(name: str) -> None:
            shape = tuple(folds[0][name].shape)
            draft.create(name, (len(folds), *shape), np.float64, _fold_chunks(shape))
            for number, fold in enumerate(folds):
                draft.put(name, fold[name].cpu().numpy(), (number,))

        at_once(self.run.store, write, folds[0])
        draft.commit(list(folds[0]), {"folds": len(folds), "included": included}, alone=False)


def batch_name(batch: Batch) -> str:
    """Unique in a stream: shard and number of the batch."""
    return f"{batch.shard.rpartition('/')[2]}/{batch.index}"


def included_digest(batch: Batch) -> str:
    """What a lane remembers of a batch's images."""
    return batch.digest[:16]


def _included(description: Mapping[str, Any] | None) -> Included:
    found = {} if description is None else description.get("included", {})
    return dict(found)


def _fold_chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One fold, in pieces of at most 64 MiB along its first dimension."""
    if not shape:
        return (1,)
    row_bytes = 8 * int(np.prod(shape[1:], dtype=np.int64))
    return (1, max(1, min(shape[0], 64 * 2**20 // max(1, row_bytes))), *shape[1:])
