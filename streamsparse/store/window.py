"""A window of activations: batches whose sums are kept give their chunks back, and a capture waits for room.

    commits/batch-N.json      the batch is whole                     written by the capture
    discarded/batch-N.json    it is in sums that are kept            written before its chunks are deleted
    waiting.json              the capture waits for room             gone when it goes on

A kill between the second and the end of the deletions leaves chunks behind; `finish_discards` deletes them.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamsparse.store import layout
from streamsparse.store.batches import Batch, batch_markers
from streamsparse.store.documents import Documents
from streamsparse.store.planned import arrays_of
from streamsparse.store.run import Run
from streamsparse.store.stream import StreamPlan


def discard(run: Run, plans: dict[str, StreamPlan], batches: Iterable[Batch]) -> None:
    """Delete the chunks of batches that are in sums that are kept; their markers stay."""
    for batch in batches:
        key = layout.discarded_key(batch.shard, batch.index)
        run.documents.write_json(key, {"batch": batch.index, "deleted": False})
        run.documents.delete_keys(_chunk_keys(plans[batch.shard], batch))
        run.documents.write_json(key, {"batch": batch.index, "deleted": True})


def finish_discards(run: Run, plans: dict[str, StreamPlan], batches: Iterable[Batch]) -> None:
    """Delete what a kill left of batches that were being discarded."""
    discarded = [batch for batch in batches if batch.discarded]
    marks = run.documents.read_many_json([layout.discarded_key(batch.shard, batch.index) for batch in discarded])
    unfinished = [
        batch for batch, mark in zip(discarded, marks, strict=True) if mark is None or not mark.get("deleted")
    ]
    discard(run, plans, unfinished)


def batches_held(documents: Documents, shard: str) -> int:
    """Committed batches whose chunks are still there."""
    return len(batch_markers(documents, shard)) - len(batch_markers(documents, shard, layout.DISCARDED))


def batches_in_window(plan: StreamPlan, window_bytes: int) -> int:
    """How many batches fit, uncompressed; one is written while another is summed, so at least two."""
    per_batch = plan.raw_bytes * plan.batch_images // max(1, plan.images)
    return max(2, window_bytes // max(1, per_batch))


def set_waiting(documents: Documents, shard: str, waiting: bool) -> None:
    """Tell whoever sums that the capture waits for room."""
    key = f"{shard}/{layout.WAITING}"
    if waiting:
        documents.write_json(key, {"waiting": True})
    else:
        documents.delete_key(key)


def someone_waits(documents: Documents, shards: Iterable[str]) -> bool:
    """Whether a capture waits for room in one of these shards."""
    return any(documents.exists(f"{shard}/{layout.WAITING}") for shard in shards)


def _chunk_keys(plan: StreamPlan, batch: Batch) -> list[str]:
    """Of every array; chunks are whole images of one batch."""
    span = plan.span(batch.index)
    keys = []
    for array in arrays_of(plan):
        size = plan.chunk_images(array.layer, array.side)
        inner = "/0" * len(array.layer.shape(array.side))
        first, last = span.start // size, -(-span.stop // size)
        keys += [f"{array.key(batch.shard)}/c/{chunk}{inner}" for chunk in range(first, last)]
    return keys
