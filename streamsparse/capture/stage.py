"""One pass of a model over the images of a shard, into the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from streamsparse.capture.images import Images, batch_digest
from streamsparse.capture.taps import Taps
from streamsparse.capture.writing import BackgroundWriter
from streamsparse.errors import RunMismatchError
from streamsparse.events import OnEvent, Reused, ignore, reporting
from streamsparse.store import Run, layout
from streamsparse.store.activations import Batch
from streamsparse.store.stream import StreamPlan


@dataclass(frozen=True)
class CaptureReport:
    """What a capture did.

    Attributes:
        images: captured now; reused_images: found committed.
        batches: written now.
        stored_bytes: of the shard on disk.
    """

    images: int
    reused_images: int
    batches: int
    stored_bytes: int


def capture_stream(
    run: Run, plan: StreamPlan, taps: Taps, images: Images, *, device: str = "cpu", on_event: OnEvent = ignore
) -> CaptureReport:
    """Dump the planned activations, batch by batch; batches that are committed already are kept.

    Raises:
        ActivationError: values that cannot be stored; batches before them stay committed.
        RunMismatchError: the images are not those of the committed batches, or the settings differ.
        StorageError: the store failed; running again resumes.
    """
    writer = run.writer(plan)
    committed = writer.committed()
    missing = [batch for batch in range(plan.batches) if batch not in committed]
    reused = sum(batch.images for batch in committed.values())
    stage = "capture" if plan.stream == layout.ORIGINAL_STREAM else f"capture {plan.stream}"
    if committed:
        _check_same_images(images, plan, committed)
        on_event(Reused(stage, f"{reused:,} of {plan.images:,} images"))
    with (
        reporting(stage, plan.images - reused, "images", on_event) as advance,
        BackgroundWriter(writer, advance) as background,
    ):
        for batch, inputs in zip(missing, _loaded(images, plan, missing), strict=True):
            background.put(batch, taps(inputs.to(device), plan.dtype), batch_digest(inputs))
    stored = run.documents.size_bytes(layout.shard_prefix(plan.stream, plan.shard, plan.shards))
    return CaptureReport(plan.images - reused, reused, len(missing), stored)


def _loaded(images: Images, plan: StreamPlan, batches: list[int]) -> Iterator[Tensor]:
    return images.batches([_positions(plan, batch) for batch in batches])


def _positions(plan: StreamPlan, batch: int) -> range:
    span = plan.span(batch)
    return range(plan.first_image + span.start, plan.first_image + span.stop)


def _check_same_images(images: Images, plan: StreamPlan, committed: dict[int, Batch]) -> None:
    first = min(committed)
    with torch.inference_mode():
        found = batch_digest(next(images.batches([_positions(plan, first)])))
    if found != committed[first].digest:
        raise RunMismatchError(
            "The images are not those that this capture began with.",
            expected=f"batch {first} with SHA-256 {committed[first].digest[:16]}…",
            got=f"{found[:16]}…",
            where=committed[first].shard,
            remedy="use the same data and preprocessing to resume, pass --overwrite, or choose another RUN",
        )
