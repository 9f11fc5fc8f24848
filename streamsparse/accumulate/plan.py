"""Which chunks each task reads, and what it will hold in memory, before anything runs.

    batches   |0 1 2 3 4 5 6 7 8 9|      lanes: contiguous runs of batches
    lanes     |   0   |   1   | 2 |
    blocks    one per layer, or pairs of ranges of channels where a Gram does not fit a worker
    tasks     one per layer, block and lane; its sums are kept in the run while they grow
    finish    one per layer and block: adds its lanes in their order, writes its part of the statistics

A layer with one lane is finished by its task.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import prod

from streamsparse.accumulate.costs import layer_cost, write_cost
from streamsparse.accumulate.memory import Cut, Resources, cut_layer
from streamsparse.errors import UsageError
from streamsparse.kernels.gram_blocks import GramBlock
from streamsparse.kernels.precision import PRECISIONS
from streamsparse.store import layout
from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch
from streamsparse.store.stream import SIDES, CapturedLayer

_TASKS_PER_WORKER = 3
_MOST_LANES = 32


@dataclass(frozen=True)
class AccumulateSettings:
    """How statistics are summed.

    Attributes:
        folds: image i belongs to fold i mod `folds`; at least 2 for held-out errors.
        product_dtype: precision of the matrix products within a block of images, a name of
            `kernels.precision.PRECISIONS`; all sums of blocks are float64.
        memory_limit_bytes: of a worker's process, or None.
    """

    folds: int = 5
    product_dtype: str = "float32"
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UsageError("Held-out errors need folds.", expected="≥ 2", got=self.folds, where="--folds")
        if self.product_dtype not in PRECISIONS:
            raise UsageError(
                "Unknown precision of products.",
                expected=" | ".join(PRECISIONS),
                got=self.product_dtype,
                where="--products",
            )


@dataclass(frozen=True)
class LaneTask:
    """Sum some batches of one layer and block; self-contained, so that any process can do it.

    Attributes:
        run_url, stream, layer: what is read.
        block: of the Gram; lane: number of the lane.
        batches: that are to be in the lane.
        sums: prefix of the lanes of this accumulation.
        channels: on the side of a block.
        source: identity of the layer's statistics.
        folds, product_dtype: see `AccumulateSettings`.
        images_per_read, copy_bytes: see `Cut`.
        direct: no other lane: write the statistics when all batches are in.
        lean: give freed memory back between the phases of the task.
    """

    run_url: str
    stream: str
    layer: CapturedLayer
    block: GramBlock
    lane: int
    batches: tuple[Batch, ...]
    sums: str
    channels: int
    source: str
    folds: int
    product_dtype: str
    images_per_read: int
    copy_bytes: int
    direct: bool
    lean: bool

    @property
    def key(self) -> str:
        """Of the lane in the run."""
        return layout.lane_key(self.sums, self.layer.geometry.layer, self.block.name, self.lane)

    @property
    def images(self) -> int:
        """That the task reads."""
        return sum(batch.images for batch in self.batches)


@dataclass(frozen=True)
class LayerPlan:
    """All tasks of one layer.

    Attributes:
        layer: of the stream.
        cut: blocks and what a task holds.
        tasks: by block, then lane.
        source: SHA-256 over the batches and settings: statistics with the same source are the same.
        read_bytes: raw activations to be read, as often as blocks need them.
        cost: of one task with what it writes, in multiply-adds.
    """

    layer: CapturedLayer
    cut: Cut
    tasks: tuple[LaneTask, ...]
    source: str
    read_bytes: int
    cost: float

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.geometry.layer

    @property
    def lanes(self) -> int:
        """Per block."""
        return len(self.tasks) // len(self.cut.blocks)

    @property
    def task_bytes(self) -> int:
        """Projected peak of one task, the process left out."""
        return self.cut.task_bytes


@dataclass(frozen=True)
class AccumulatePlan:
    """The whole stage.

    Attributes:
        stream: that is summed.
        images: of all batches.
        settings: as asked for.
        resources: of the workers.
        sums: prefix of the partial sums.
        layers: in order of execution.
    """

    stream: str
    images: int
    settings: AccumulateSettings
    resources: Resources
    sums: str
    layers: tuple[LayerPlan, ...]

    @property
    def worker_bytes(self) -> int:
        """Projected peak of a worker's process."""
        largest = max((layer.task_bytes for layer in self.layers), default=0)
        return self.resources.process_bytes + self.resources.tasks_per_process * largest

    def cuts(self) -> dict[str, list[int]]:
        """Channels per block and lanes of every layer, to go on with after a kill."""
        return {layer.name: [layer.cut.channels, layer.lanes] for layer in self.layers}


def plan_accumulation(
    run_url: str,
    reader: ActivationReader,
    batches: list[Batch],
    settings: AccumulateSettings,
    resources: Resources | None = None,
    *,
    earlier: Mapping[str, Sequence[int]] | None = None,
    single_lane: bool = False,
) -> AccumulatePlan:
    """Cut every layer into tasks.

    Args:
        run_url: of the run that `reader` reads.
        reader: of the stream.
        batches: all that are to be summed, in order of their images.
        settings: folds, dtype.
        resources: workers and their memory; None for one without a limit.
        earlier: channels and lanes of an accumulation to go on with, by layer; kept where they fit.
        single_lane: batches will be added as they come.

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
    resources = resources or Resources()
    sums = layout.sums_prefix(reader.stream, sums_digest(reader, settings))
    earlier, source = earlier or {}, source_of(batches, settings)
    costs = {name: images * layer_cost(layer) for name, layer in reader.layers.items()}
    writing = {name: settings.folds * write_cost(layer) for name, layer in reader.layers.items()}
    share = (sum(costs.values()) + sum(writing.values())) / (_TASKS_PER_WORKER * resources.workers)
    layers = []
    for name, layer in reader.layers.items():
        before = tuple(earlier.get(name, ()))
        cut = cut_layer(layer, reader.example_plan, settings.folds, resources, *before[:1])
        alone = single_lane or resources.workers == 1
        wanted = 1 if alone else math.ceil(costs[name] / (share * len(cut.blocks)))
        if before and before[0] == cut.channels and not single_lane:
            wanted = before[1]
        lanes = max(1, min(wanted, len(batches), _MOST_LANES))
        task = _first_task(run_url, reader.stream, layer, cut, settings)
        task = replace(task, sums=sums, source=source, direct=lanes == 1 and not single_lane)
        tasks = _tasks(task, cut.blocks, lanes, batches)
        cost = costs[name] / len(tasks) + writing[name] / len(cut.blocks)
        layers.append(LayerPlan(layer, cut, tasks, source, _read_bytes(layer, reader, images, cut), cost))
    return AccumulatePlan(reader.stream, images, settings, resources, sums, tuple(layers))


def _first_task(
    run_url: str, stream: str, layer: CapturedLayer, cut: Cut, settings: AccumulateSettings
) -> LaneTask:
    return LaneTask(
        run_url=run_url,
        stream=stream,
        layer=layer,
        block=cut.blocks[0],
        lane=0,
        batches=(),
        sums="",
        channels=cut.channels,
        source="",
        folds=settings.folds,
        product_dtype=settings.product_dtype,
        images_per_read=cut.images_per_read,
        copy_bytes=cut.copy_bytes,
        direct=False,
        lean=settings.memory_limit_bytes is not None,
    )


def _tasks(common: LaneTask, blocks: Sequence[GramBlock], lanes: int, batches: list[Batch]) -> tuple[LaneTask, ...]:
    ends = [len(batches) * number // lanes for number in range(lanes + 1)]
    return tuple(
        replace(common, block=block, lane=lane, batches=tuple(batches[first:last]))
        for block in blocks
        for lane, (first, last) in enumerate(pairwise(ends))
    )


def _read_bytes(layer: CapturedLayer, reader: ActivationReader, images: int, cut: Cut) -> int:
    itemsize = 2 if reader.example_plan.dtype == "float16" else 4
    per_image = [layer.calls * prod(layer.shape(side)) * itemsize for side in SIDES]
    diagonal = sum(block.diagonal for block in cut.blocks)
    return images * (per_image[0] * len(cut.blocks) + per_image[1] * diagonal)


def sums_digest(reader: ActivationReader, settings: AccumulateSettings) -> str:
    """Identity of partial sums: what is captured how, folds and products; not the batches, which may grow."""
    captured = reader.example_plan.to_json()
    identity = {
        "captured": {name: captured[name] for name in ("shards", "batch_images", "dtype", "codec", "layers")},
        "folds": settings.folds,
        "products": settings.product_dtype,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def source_of(batches: list[Batch], settings: AccumulateSettings) -> str:
    """Identity of finished statistics: the batches, folds and products."""
    identity = {
        "batches": [asdict(replace(batch, discarded=False)) for batch in batches],
        "folds": settings.folds,
        "products": settings.product_dtype,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
