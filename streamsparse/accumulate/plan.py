"""Which chunks each task reads, and what it will hold in memory, before anything runs.

batches   |0 1 2 3 4 5 6 7 8 9|      one task = a contiguous run of batches of one layer
tasks     |  t0   |  t1   | t2|      partial sums, merged pairwise in this order
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod

from streamsparse.errors import MemoryLimitError, UsageError
from streamsparse.kernels.shift_sums import shift_bytes
from streamsparse.kernels.shifts import BLOCK_BYTES
from streamsparse.kernels.statistics import sums_bytes
from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch
from streamsparse.store.stream import SIDES, CapturedLayer

_TASK_BYTES = 256 * 2**20
_MOST_TASKS = 16


@dataclass(frozen=True)
class AccumulateSettings:
    """How statistics are summed.

    Attributes:
        folds: image i belongs to fold i mod `folds`; at least 2 for held-out errors.
        product_dtype: of the matrix products within a block; all sums are float64.
        memory_limit_bytes: per worker, or None.
    """

    folds: int = 5
    product_dtype: str = "float64"
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UsageError("Held-out errors need folds.", expected="≥ 2", got=self.folds, where="--folds")
        if self.product_dtype not in ("float64", "float32"):
            raise UsageError(
                "Unknown dtype of products.",
                expected="float64 | float32",
                got=self.product_dtype,
                where="--products",
            )


@dataclass(frozen=True)
class Task:
    """Sum a contiguous run of batches of one layer; self-contained, so that any process can do it."""

    run_url: str
    stream: str
    layer: CapturedLayer
    batches: tuple[Batch, ...]
    settings: AccumulateSettings


@dataclass(frozen=True)
class LayerPlan:
    """All tasks of one layer.

    Attributes:
        source: SHA-256 over the batches and settings: statistics with the same source are the same.
        read_bytes: raw activations to be read.
        task_bytes: projected peak of one task: partial sums that wait for their merge, a block, a batch.
    """

    layer: CapturedLayer
    tasks: tuple[Task, ...]
    source: str
    read_bytes: int
    task_bytes: int


@dataclass(frozen=True)
class AccumulatePlan:
    """The whole stage."""

    stream: str
    images: int
    settings: AccumulateSettings
    layers: tuple[LayerPlan, ...]


def plan_accumulation(
    run_url: str, reader: ActivationReader, batches: list[Batch], settings: AccumulateSettings
) -> AccumulatePlan:
    """Cut every layer's batches into tasks.

    Args:
        run_url: of the run that `reader` reads.
        reader: of the stream.
        batches: all that are to be summed, in order of their images.
        settings: folds, dtype, memory.

    Raises:
        MemoryLimitError: one task alone needs more than the limit.
        UsageError: fewer images than folds.
    """
    images = sum(batch.images for batch in batches)
    if images < settings.folds:
        raise UsageError(
            "There are fewer images than folds.",
            expected=f"at least {settings.folds} images",
            got=images,
            where=f"stream '{reader.stream}'",
            remedy="capture more images or lower --folds",
        )
    value_bytes = 2 if next(iter(reader.plans.values())).dtype == "float16" else 4
    layers = [
        _plan_layer(run_url, reader.stream, layer, batches, settings, value_bytes)
        for layer in reader.layers.values()
    ]
    return AccumulatePlan(reader.stream, images, settings, tuple(layers))


def _plan_layer(
    run_url: str,
    stream: str,
    layer: CapturedLayer,
    batches: list[Batch],
    settings: AccumulateSettings,
    value_bytes: int,
) -> LayerPlan:
    values = layer.calls * sum(prod(layer.shape(side)) for side in SIDES)  # per image
    read_bytes = values * value_bytes * sum(batch.images for batch in batches)
    count = max(1, min(len(batches), _MOST_TASKS, -(-read_bytes // _TASK_BYTES)))
    cuts = [len(batches) * number // count for number in range(count + 1)]
    tasks = tuple(
        Task(run_url, stream, layer, tuple(batches[first:last]), settings) for first, last in pairwise(cuts)
    )
    largest_batch = max(batch.images for batch in batches) * values * 8
    held = 2 + (count - 1).bit_length()  # one per level of the merge tree, the running sums, the merged
    task_bytes = settings.folds * (held * sums_bytes(layer.geometry) + shift_bytes(layer.geometry))
    task_bytes += 2 * BLOCK_BYTES + 2 * largest_batch
    _check_limit(task_bytes, settings.memory_limit_bytes, layer)
    return LayerPlan(layer, tasks, _source(batches, settings), read_bytes, task_bytes)


def _check_limit(task_bytes: int, limit_bytes: int | None, layer: CapturedLayer) -> None:
    if limit_bytes is not None and task_bytes > limit_bytes:
        raise MemoryLimitError(
            f"One task of layer '{layer.geometry.layer}' does not fit the memory limit.",
            expected=f"at most {limit_bytes:,} bytes",
            got=f"{task_bytes:,} bytes projected",
            where=layer.geometry.layer,
            remedy="raise --memory-limit, lower --folds, or capture with a smaller --batch-size",
        )


def _source(batches: list[Batch], settings: AccumulateSettings) -> str:
    identity = {
        "batches": [asdict(batch) for batch in batches],
        "folds": settings.folds,
        "products": settings.product_dtype,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
