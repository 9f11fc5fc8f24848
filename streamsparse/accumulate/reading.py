"""Reading a task's activations piece by piece, one piece ahead of the sums."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np

from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Piece:
    """Some images of one call of a layer.

    Attributes:
        whole: batches that are read to their end with this piece.
        first_image: number of the first in the run.
        inputs, outputs: (images, *shape) as stored; no outputs where they are not needed.
    """

    whole: tuple[Batch, ...]
    first_image: int
    inputs: np.ndarray
    outputs: np.ndarray | None


def pieces(
    reader: ActivationReader,
    layer: str,
    calls: int,
    batches: Iterable[Batch],
    step: int,
    *,
    outputs: bool,
    skipped: Container[Batch] = (),
) -> Iterator[Piece]:
    """Every image of the batches, in order, about `step` at a time; the next piece is read while one is used.

    A piece is a part of a batch, or as many consecutive batches as fit: every piece adds to all of the sums once,
    however few its images. Where pieces end depends on `batches` and `step` alone, so whoever goes on after a kill
    forms the same products.

    Args:
        reader: of the stream.
        layer, calls: what is read.
        batches: in order of their images.
        step: images of a piece; more only where a chunk of the store holds more.
        outputs: read the outputs too.
        skipped: batches that are not read.

    Raises:
        CorruptDataError: a chunk is damaged or missing.
    """

    def read(group: tuple[Batch, ...], images: range, call: int) -> Piece:
        inputs = _joined(reader, group, images, layer, call, "input")
        responses = _joined(reader, group, images, layer, call, "output") if outputs else None
        last = images.stop == group[-1].images and call == calls - 1
        return Piece(group if last else (), group[0].first_image + images.start, inputs, responses)

    wanted = (
        (left, images, call)
        for group, images in _cut(batches, step)
        for left in _without(group, skipped)
        for call in range(calls)
    )
    return one_ahead(partial(read, *part) for part in wanted)


def _cut(batches: Iterable[Batch], step: int) -> Iterator[tuple[list[Batch], range]]:
    """Consecutive batches of together at most `step` images with their images, or a larger batch part by part."""
    group: list[Batch] = []
    for batch in batches:
        follows = bool(group) and group[-1].first_image + group[-1].images == batch.first_image
        if group and (not follows or sum(each.images for each in group) + batch.images > step):
            yield group, range(group[-1].images)
            group = []
        if batch.images <= step:
            group.append(batch)
            continue
        for first in range(0, batch.images, step):
            yield [batch], range(first, min(first + step, batch.images))
    if group:
        yield group, range(group[-1].images)


def _without(group: list[Batch], skipped: Container[Batch]) -> Iterator[tuple[Batch, ...]]:
    """What is left of a group; several runs, if something in its middle is skipped."""
    for wanted, run in groupby(group, lambda batch: batch not in skipped):
        if wanted:
            yield tuple(run)


def _joined(
    reader: ActivationReader, group: tuple[Batch, ...], images: range, layer: str, call: int, side: str
) -> np.ndarray:
    """The images of all batches, or those of the only one; one batch at a time beside the result."""
    if len(group) == 1:
        return reader.read(group[0], layer, call, side, images)
    joined: np.ndarray | None = None
    filled = 0
    for batch in group:
        values = reader.read(batch, layer, call, side)
        if joined is None:
            joined = np.empty((sum(each.images for each in group), *values.shape[1:]), values.dtype)
        joined[filled : filled + len(values)] = values
        filled += len(values)
    assert joined is not None
    return joined


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
