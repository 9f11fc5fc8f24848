"""What a task of an accumulation holds in memory, in bytes, before it runs.

process     Python, torch and the libraries          measured
state       the sums of a block, every fold          8 bytes a number
reading     the pieces being summed and read ahead   twice over: compressed and not
copies      the kernels' block of converted images
finishing   one fold's Gram, its parts, a chunk on its way to the store
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from math import lcm, prod

import numpy as np

from streamsparse.errors import MemoryLimitError, UsageError
from streamsparse.kernels.gram_blocks import GramBlock, block_bytes, finished_shapes, split_blocks
from streamsparse.kernels.gram_plan import gram_plan
from streamsparse.store.records import CHUNK_BYTES
from streamsparse.store.stream import SIDES, CapturedLayer, StreamPlan

COPY_BYTES = 128 * 2**20  # for reading a quarter as much; halved until a task fits
LEAST_COPY_BYTES = 16 * 2**20
LEAST_CHANNELS = 8
READ_AHEAD = 1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_SLACK = 1.05


@dataclass(frozen=True)
class Resources:
    """Where an accumulation runs.

    Attributes:
        workers: tasks under way at the same time.
        process_bytes: that a worker's process holds before it works.
        limit_bytes: of a worker's process, or None.
        tasks_per_process: tasks that share a process and its limit.
    """

    workers: int = 1
    process_bytes: int = 0
    limit_bytes: int | None = None
    tasks_per_process: int = 1

    @property
    def task_limit_bytes(self) -> int | None:
        """What one task may hold, or None for any amount."""
        if self.limit_bytes is None:
            return None
        return max(0, self.limit_bytes - self.process_bytes) // self.tasks_per_process

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError("Somebody has to work.", expected="≥ 1", got=self.workers, where="--workers")


def keep_freed_memory() -> None:
    """Have the C library reuse freed blocks of up to 32 MiB, the most it allows (glibc; else nothing).

    Dask's nannies set MALLOC_TRIM_THRESHOLD_, which fixes glibc's other threshold at 128 KiB too: then every window
    of a product is mapped anew, and page faults cost more than the sums.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(_TRIM_THRESHOLD, 512 * 2**20)


def return_freed_memory() -> None:
    """Have the C library give what it keeps for later back to the system (glibc; else nothing).

    Between the phases of a task, whose blocks differ in size: kept ones would add up.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Cut:
    """How a layer's sums are cut to fit a worker.

    Attributes:
        blocks: of its Gram.
        images_per_read: whole chunks of both sides.
        copy_bytes: for the kernels' converted images.
        task_bytes: projected for the largest block, the process left out.
    """

    blocks: tuple[GramBlock, ...]
    images_per_read: int
    copy_bytes: int
    task_bytes: int

    @property
    def channels(self) -> int:
        """The widest side of a block, over all its groups."""
        return max(block.groups * (block.rows[1] - block.rows[0]) for block in self.blocks)


def cut_layer(
    layer: CapturedLayer, stream: StreamPlan, folds: int, resources: Resources, channels: int | None = None
) -> Cut:
    """Cut a layer into as few blocks as fit: one, or pairs of ever narrower ranges of channels.

    Args:
        layer: of the stream.
        stream: one of its shards.
        folds: of the sums.
        resources: of the workers.
        channels: try this width first: that of an accumulation that is to go on.

    Raises:
        MemoryLimitError: not even the narrowest blocks fit.
    """
    limit, width = resources.task_limit_bytes, layer.geometry.in_channels
    first = width if channels is None else channels
    smallest: Cut | None = None
    while True:
        smallest = _fitted(layer, stream, folds, limit, first)
        if limit is None or smallest.task_bytes <= limit:
            return smallest
        if first <= min(LEAST_CHANNELS, width):
            break
        first = max(LEAST_CHANNELS, -(-first // 2))
    raise MemoryLimitError(
        f"One task of layer '{layer.geometry.layer}' does not fit the memory limit.",
        expected=f"at most {resources.limit_bytes or 0:,} bytes per worker",
        got=f"{resources.process_bytes + smallest.task_bytes * resources.tasks_per_process:,} bytes projected, of "
        f"which {resources.process_bytes:,} for the process and its libraries",
        where=layer.geometry.layer,
        remedy="raise --memory-limit, lower --folds or --workers (threads share a process), or capture with a "
        "smaller --batch-size",
    )


def _fitted(layer: CapturedLayer, stream: StreamPlan, folds: int, limit: int | None, channels: int) -> Cut:
    """With generous copies if they fit, else with smaller ones."""
    blocks = split_blocks(layer.geometry, channels)
    copies = COPY_BYTES
    while True:
        step = images_per_read(layer, stream, copies // 4)
        needed = max(task_bytes(layer, stream, block, folds, step, copies) for block in _largest(layer, blocks))
        if limit is None or needed <= limit or copies <= LEAST_COPY_BYTES:
            return Cut(blocks, step, copies, needed)
        copies //= 2


def _largest(layer: CapturedLayer, blocks: tuple[GramBlock, ...]) -> list[GramBlock]:
    """The largest on the diagonal and off it; blocks of a layer differ by little."""
    kinds = ([block for block in blocks if block.diagonal == diagonal] for diagonal in (True, False))
    return [max(kind, key=lambda block: block_bytes(layer.geometry, block)) for kind in kinds if kind]


def images_per_read(layer: CapturedLayer, stream: StreamPlan, most_bytes: int) -> int:
    """As many whole batches as `most_bytes` hold, or of a batch that is larger whole chunks of both sides."""
    chunks = lcm(*(stream.chunk_images(layer, side) for side in SIDES))
    image = sum(prod(layer.shape(side)) for side in SIDES) * np.dtype(stream.dtype).itemsize
    batches = most_bytes // (image * stream.batch_images)
    if batches:
        return int(batches * stream.batch_images)
    return min(stream.batch_images, chunks * max(1, most_bytes // (image * chunks)))


def task_bytes(
    layer: CapturedLayer, stream: StreamPlan, block: GramBlock, folds: int, images: int, copies: int
) -> int:
    """Projected peak of one task: see the head of this module."""
    geometry = layer.geometry
    value_bytes = np.dtype(stream.dtype).itemsize
    sides = SIDES if block.diagonal else SIDES[:1]
    piece = images * value_bytes * sum(prod(layer.shape(side)) for side in sides)
    of_fold = block_bytes(geometry, block)
    finished = 8 * sum(prod(shape) for shape in finished_shapes(geometry, block).values())
    chunk = min(CHUNK_BYTES, max(of_fold, finished))
    converted = min(max(copies, _one_image(layer)), 8 * images * gram_plan(geometry).numbers_per_image)
    summing = (READ_AHEAD + 1) * 2 * piece + converted
    finishing = max(of_fold, 3 * finished) + 3 * chunk
    return int(_SLACK * (folds * of_fold + max(summing, finishing)))


def _one_image(layer: CapturedLayer) -> int:
    """Converted to double precision, twice."""
    return 2 * 8 * sum(prod(layer.shape(side)) for side in SIDES)
