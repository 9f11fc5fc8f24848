"""Reading a task's activations piece by piece, one piece ahead of the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Piece:
    """Some images of one call of a layer.

    Attributes:
        batch: they belong to; ends_batch: the last of it.
        first_image: number of the first in the run.
        inputs, outputs: (images, *shape) as stored; no outputs where they are not needed.
    """

    batch: Batch
    ends_batch: bool
    first_image: int
    inputs: np.ndarray
    outputs: np.ndarray | None


def pieces(
    reader: ActivationReader, layer: str, calls: int, batches: Iterable[Batch], step: int, *, outputs: bool
) -> Iterator[Piece]:
    """Every image of the batches, in order, `step` at a time; the next piece is read while one is used.

    Raises:
        CorruptDataError: a chunk is damaged or missing.
    """

    def read(batch: Batch, images: range, call: int) -> Piece:
        inputs = reader.read(batch, layer, call, "input", images)
        responses = reader.read(batch, layer, call, "output", images) if outputs else None
        last = images.stop == batch.images and call == calls - 1
        return Piece(batch, last, batch.first_image + images.start, inputs, responses)

    wanted = (
        (batch, range(first, min(first + step, batch.images)), call)
        for batch in batches
        for first in range(0, batch.images, step)
        for call in range(calls)
    )
    return one_ahead(partial(read, *part) for part in wanted)


def one_ahead(work: Iterable[Callable[[], Value]]) -> Iterator[Value]:
    """Results in order; each is computed in a thread while the one before is used."""
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        waiting = None
        for item in work:
            following = pool.submit(item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
