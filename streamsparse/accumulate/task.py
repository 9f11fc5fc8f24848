"""The work of one task: add batches to a lane, or turn the lanes of a block into its part of the statistics.

A lane is kept in the run at least once a minute, so a killed worker loses no more; whoever repeats the task goes on
from there. Repeating a task that is done does nothing, and two workers on one task do no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import torch

from streamsparse.accumulate.memory import keep_freed_memory, return_freed_memory
from streamsparse.accumulate.plan import LaneTask
from streamsparse.accumulate.reading import pieces
from streamsparse.errors import CorruptDataError, StageMissingError
from streamsparse.kernels.folds import empty_block_folds, update_block_folds
from streamsparse.kernels.gram_blocks import BlockSums, block_from_tensors, finish_block, merge_block
from streamsparse.store import Run
from streamsparse.store.batches import Batch
from streamsparse.store.lanes import Included, Lane, Snapshot, batch_name, included_digest
from streamsparse.store.statistics import Statistics, StatisticsDraft

KEEP_SECONDS = 60.0
_ATTEMPTS = 5  # to read a lane that another worker, given up for lost, writes meanwhile
Report = Callable[[int], None]


@dataclass(frozen=True)
class FinishTask:
    """Add the lanes of one block and write its part of the statistics; `tasks` are those that filled them."""

    tasks: tuple[LaneTask, ...]


def sum_lane(run: Run, task: LaneTask, report: Report) -> None:
    """Bring a lane up to its batches; `report` hears of images.

    Raises:
        CorruptDataError: a chunk or the lane is damaged.
        NonFiniteError: activations that are not finite.
    """
    keep_freed_memory()
    if task.lean:
        return_freed_memory()
    draft = draft_of(run, task)
    if task.direct and draft.noted(task.block):
        report(task.images)
        return
    lane = Lane(run, task.key)
    included, folds = _begin(lane, task)
    todo = _not_included(task, included)
    if len(todo) < len(task.batches):
        report(task.images - sum(batch.images for batch in todo))
    if not todo and not task.direct:
        return
    kept_at = monotonic()
    reader, geometry = run.reader(task.stream), task.layer.geometry
    outputs = task.block.diagonal
    there = set(task.batches) - set(todo)
    for piece in pieces(
        reader, geometry.layer, task.layer.calls, task.batches, task.images_per_read, outputs=outputs, skipped=there
    ):
        inputs = torch.from_numpy(piece.inputs)
        responses = None if piece.outputs is None else torch.from_numpy(piece.outputs)
        update_block_folds(
            folds, inputs, responses, geometry, task.block, piece.first_image, task.product_dtype,
            task.copy_bytes,
        )  # fmt: skip
        for batch in piece.whole:
            included[batch_name(batch)] = included_digest(batch)
            report(batch.images)
        more = piece.whole and piece.whole[-1] is not todo[-1]
        if more and monotonic() - kept_at > KEEP_SECONDS:
            lane.write([part.tensors() for part in folds], included)
            kept_at = monotonic()
    if task.direct:
        _write(draft, task, folds)
    else:
        lane.write([part.tensors() for part in folds], included)


def finish_lanes(run: Run, finish: FinishTask, report: Report) -> None:
    """Add the lanes in their order, one fold of one lane at a time.

    Raises:
        CorruptDataError: a lane is damaged, or a batch is in none or in two of them.
    """
    first = finish.tasks[0]
    if first.lean:
        return_freed_memory()
    draft = draft_of(run, first)
    if draft.noted(first.block):
        return
    lanes = [Lane(run, task.key) for task in finish.tasks]
    for _ in range(_ATTEMPTS - 1):
        found = [lane.snapshot() for lane in lanes]
        try:
            folds = _added(found, finish.tasks)
        except CorruptDataError:
            if not any(lane.replaced(snapshot) for lane, snapshot in zip(lanes, found, strict=True)):
                raise
        else:
            break
    else:
        folds = _added([lane.snapshot() for lane in lanes], finish.tasks)
    _write(draft, first, folds)


def _added(found: Sequence[Snapshot | None], tasks: Sequence[LaneTask]) -> tuple[BlockSums, ...]:
    """The sums of all lanes; what is checked is what is added."""
    _check_partition(found, tasks)
    first, *rest = (_checked(snapshot, task) for snapshot, task in zip(found, tasks, strict=True))
    folds = tuple(block_from_tensors(fold) for fold in first.all_folds())
    for snapshot in rest:
        for number, part in enumerate(folds):
            merge_block(part, block_from_tensors(snapshot.fold(number)))
    return folds


def draft_of(run: Run, task: LaneTask) -> StatisticsDraft:
    """Where the task's block goes: nobody who cuts in another way writes there, however late."""
    generation = hashlib.sha256(f"{task.source}/{task.channels}".encode()).hexdigest()[:16]
    return Statistics(run, task.stream).draft(task.layer.geometry, task.folds, generation, task.channels)


def _write(draft: StatisticsDraft, task: LaneTask, folds: Sequence[BlockSums]) -> None:
    for number, part in enumerate(folds):
        if task.lean:
            return_freed_memory()
        draft.put(number, task.block, finish_block(part, task.layer.geometry, task.block))
    draft.note(task.block)


def _begin(lane: Lane, task: LaneTask) -> tuple[Included, tuple[BlockSums, ...]]:
    """What the lane holds, and which batches are in it; empty sums for a lane that is not there."""
    for attempt in range(_ATTEMPTS):
        snapshot = lane.snapshot()
        if snapshot is None:
            break
        try:
            folds = tuple(block_from_tensors(fold) for fold in _checked(snapshot, task).all_folds())
        except CorruptDataError:
            if attempt == _ATTEMPTS - 1 or not lane.replaced(snapshot):
                raise
        else:
            return snapshot.included, folds
    return {}, empty_block_folds(task.layer.geometry, task.block, task.folds)


def _checked(snapshot: Snapshot | None, task: LaneTask) -> Snapshot:
    if snapshot is None or snapshot.folds != task.folds:
        raise CorruptDataError(
            "Partial sums are not those of this accumulation.",
            expected=f"{task.folds} folds",
            got="nothing" if snapshot is None else f"{snapshot.folds} folds",
            where=task.key,
            remedy="delete the folder and run `streamsparse accumulate` again",
        )
    return snapshot


def _not_included(task: LaneTask, included: Included) -> list[Batch]:
    """Batches that are not in the lane yet; those that are must hold the same images as then."""
    todo = []
    for batch in task.batches:
        digest = included.get(batch_name(batch))
        if digest is None and batch.discarded:
            raise _discarded(task, batch)
        if digest is None:
            todo.append(batch)
        elif digest != included_digest(batch):
            raise _other_images(task, batch)
    return todo


def _discarded(task: LaneTask, batch: Batch) -> StageMissingError:
    return StageMissingError(
        "Activations that are to be summed were discarded.",
        expected=f"batch {batch_name(batch)}, for {task.folds} folds and {task.product_dtype} products",
        got="sums with other settings, for which its activations were given up",
        where=task.layer.geometry.layer,
        remedy="repeat the settings of `accumulate --follow --discard`, or capture again with --overwrite",
    )


def _other_images(task: LaneTask, batch: Batch) -> CorruptDataError:
    return CorruptDataError(
        "A batch was captured anew after it had been summed.",
        expected=f"batch {batch_name(batch)} with the images that are in the partial sums",
        got="others",
        where=task.key,
        remedy=f"delete {task.sums} in the run and run `streamsparse accumulate` again",
    )


def _check_partition(found: Sequence[Snapshot | None], tasks: Sequence[LaneTask]) -> None:
    """Every batch is in exactly one lane."""
    names = [name for snapshot in found if snapshot is not None for name in snapshot.included]
    expected = [batch_name(batch) for task in tasks for batch in task.batches]
    if sorted(names) != sorted(expected):
        missing, twice = set(expected) - set(names), len(names) - len(set(names))
        raise CorruptDataError(
            "The partial sums of a layer do not hold every batch once.",
            expected=f"{len(expected)} batches",
            got=f"{len(names)}: {len(missing)} missing, {twice} twice, {len(set(names) - set(expected))} others",
            where=tasks[0].key,
            remedy=f"delete {tasks[0].sums} in the run and run `streamsparse accumulate` again",
        )
