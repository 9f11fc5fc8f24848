"""The work of one task: add batches to a lane, or turn the lanes of a block into its part of the statistics.

A lane is kept in the run at least once a minute, so a killed worker loses no more; whoever repeats the task goes on
from there. Repeating a task that is done does nothing, and two workers on one task do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import torch

from streamsparse.accumulate.memory import return_freed_memory
from streamsparse.accumulate.plan import LaneTask
from streamsparse.accumulate.reading import pieces
from streamsparse.errors import CorruptDataError, StageMissingError
from streamsparse.kernels.folds import empty_block_folds, update_block_folds
from streamsparse.kernels.gram_blocks import BlockSums, block_from_tensors, finish_block, merge_block
from streamsparse.store import Run
from streamsparse.store.batches import Batch
from streamsparse.store.lanes import Included, Lane, batch_name, included_digest
from streamsparse.store.statistics import Statistics, StatisticsDraft

KEEP_SECONDS = 60.0
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
    if task.lean:
        return_freed_memory()
    draft = draft_of(run, task)
    if task.direct and draft.noted(task.block):
        report(task.images)
        return
    lane = Lane(run, task.key)
    included = lane.included()
    todo = _not_included(task, included)
    if len(todo) < len(task.batches):
        report(task.images - sum(batch.images for batch in todo))
    if not todo and not task.direct:
        return
    folds = _sums(lane, task) if included else empty_block_folds(task.layer.geometry, task.block, task.folds)
    kept_at = monotonic()
    reader, geometry = run.reader(task.stream), task.layer.geometry
    outputs = task.block.diagonal
    for piece in pieces(reader, geometry.layer, task.layer.calls, todo, task.images_per_read, outputs=outputs):
        inputs = torch.from_numpy(piece.inputs)
        responses = None if piece.outputs is None else torch.from_numpy(piece.outputs)
        update_block_folds(
            folds, inputs, responses, geometry, task.block, piece.first_image, task.product_dtype,
            task.copy_bytes,
        )  # fmt: skip
        if piece.ends_batch:
            included[batch_name(piece.batch)] = included_digest(piece.batch)
            report(piece.batch.images)
            if monotonic() - kept_at > KEEP_SECONDS and piece.batch is not todo[-1]:
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
    first, *rest = finish.tasks
    if first.lean:
        return_freed_memory()
    draft = draft_of(run, first)
    if draft.noted(first.block):
        return
    _check_partition(run, finish.tasks)
    folds = _sums(Lane(run, first.key), first)
    for task in rest:
        for number, part in enumerate(folds):
            merge_block(part, block_from_tensors(Lane(run, task.key).fold(number)))
    _write(draft, first, folds)


def draft_of(run: Run, task: LaneTask) -> StatisticsDraft:
    """Where the task's block goes."""
    return Statistics(run, task.stream).draft(task.layer.geometry, task.folds, task.source[:16], task.channels)


def _write(draft: StatisticsDraft, task: LaneTask, folds: Sequence[BlockSums]) -> None:
    for number, part in enumerate(folds):
        draft.put(number, task.block, finish_block(part, task.layer.geometry, task.block))
    draft.note(task.block)


def _sums(lane: Lane, task: LaneTask) -> tuple[BlockSums, ...]:
    progress = lane.read()
    if progress is None or len(progress.folds) != task.folds:
        raise CorruptDataError(
            "Partial sums are not those of this accumulation.",
            expected=f"{task.folds} folds",
            got="nothing" if progress is None else f"{len(progress.folds)} folds",
            where=task.key,
            remedy="delete the folder and run `streamsparse accumulate` again",
        )
    return tuple(block_from_tensors(fold) for fold in progress.folds)


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


def _check_partition(run: Run, tasks: Sequence[LaneTask]) -> None:
    """Every batch is in exactly one lane."""
    found: list[str] = [name for task in tasks for name in Lane(run, task.key).included()]
    expected = [batch_name(batch) for task in tasks for batch in task.batches]
    if sorted(found) != sorted(expected):
        missing, twice = set(expected) - set(found), len(found) - len(set(found))
        raise CorruptDataError(
            "The partial sums of a layer do not hold every batch once.",
            expected=f"{len(expected)} batches",
            got=f"{len(found)}: {len(missing)} missing, {twice} twice, {len(set(found) - set(expected))} others",
            where=tasks[0].key,
            remedy=f"delete {tasks[0].sums} in the run and run `streamsparse accumulate` again",
        )
