"""The capture stage: find what can be removed, begin the run, and pass the images through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from streamsparse.capture.images import Images, batch_digest, calibration_images
from streamsparse.capture.manifest import Subject, begin_run, check_weights, describe
from streamsparse.capture.plan import CaptureSettings, plan_stream
from streamsparse.capture.summing import Looks, sum_stream
from streamsparse.capture.taps import Taps
from streamsparse.capture.writing import BackgroundWriter, Window
from streamsparse.errors import RunMismatchError
from streamsparse.events import Notice, OnEvent, Reused, ignore, reporting
from streamsparse.network import find_groups
from streamsparse.network.running import evaluating
from streamsparse.store import Run, layout
from streamsparse.store.batches import Batch
from streamsparse.store.codecs import loss
from streamsparse.store.stream import StreamPlan
from streamsparse.store.timings import recorded
from streamsparse.types import ChannelGraph


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


def capture(
    model: nn.Module,
    data: object,
    run: Run | str | Path,
    *,
    images: int | None = None,
    seed: int = 0,
    settings: CaptureSettings | None = None,
    subject: Subject | None = None,
    overwrite: bool = False,
    accept: Callable[[ChannelGraph], None] | None = None,
    looks: Looks | None = None,
    on_event: OnEvent = ignore,
) -> CaptureReport:
    """Dump the inputs and outputs of every layer that consumes a channel group.

    Args:
        model: a trained network of images to logits; left as it is, but for the device it is moved to.
        data: a map-style Dataset, a DataLoader over one, or a tensor (images, *shape), preprocessed.
        run: where to; a directory that does not exist yet, or a capture to resume.
        images: how many to sample; None for all.
        seed: of the sample.
        settings: dtype, codec, batch, shard, device.
        subject: how to build the model and open the data again, for the later stages.
        overwrite: begin anew, whatever the run holds; of several shards only the first should.
        accept: called with the channel groups before anything is written; raises to refuse them.
        looks: of the statistics sink in one shard: may end the capture early; see `streamsparse.adaptive`.
        on_event: hears of progress.

    Raises:
        ModelError, DataError: unusable input; nothing is written.
        NonFiniteError: the model's weights hold NaN or infinity; nothing is written.
        RunError: the directory holds something that is not a run.
        RunMismatchError: the run was begun with another model, data set or settings.
        RunLockedError: another process is using it.
        ActivationError, StorageError: see `capture_stream`.
    """
    settings = settings or CaptureSettings()
    run = run if isinstance(run, Run) else Run.at(run)
    run.require_own()
    sample = calibration_images(data, images=images, seed=seed)
    check_weights(model)
    with evaluating(model):
        model.to(settings.device)
        example = sample.example.to(settings.device)
        graph = find_groups(model, example, on_event=on_event)
        if accept is not None:
            accept(graph)
        plan = plan_stream(model, graph, example, len(sample), settings)
        layers = {layer.geometry.layer: layer.calls for layer in plan.layers}
        manifest = describe(model, graph, sample, subject or Subject(), list(layers), settings)
        shard = f"capture-{settings.shard:04d}-of-{settings.shards:04d}"
        name = "capture" if settings.shards == 1 else f"capture {settings.shard + 1} of {settings.shards}"
        with (  # other shards, and who follows, may be at work
            run.lock(shared=not overwrite),
            run.lock(shard),
            recorded(run, "capture", on_event, name=name) as on_event,
        ):
            if overwrite:
                run.clear()
            begin_run(run, manifest, model)
            if settings.sink == "statistics":
                return _sum(run, plan, model, sample, settings, looks, on_event)
            return capture_stream(
                run,
                plan,
                Taps(layers, model),
                sample,
                device=settings.device,
                window_bytes=settings.window_bytes,
                on_event=on_event,
            )


def _sum(
    run: Run,
    plan: StreamPlan,
    model: nn.Module,
    sample: Images,
    settings: CaptureSettings,
    looks: Looks | None,
    on_event: OnEvent,
) -> CaptureReport:
    summed = sum_stream(
        run,
        plan,
        model,
        sample,
        folds=settings.folds,
        product_dtype=settings.products,
        device=settings.device,
        looks=looks,
        on_event=on_event,
    )
    stored = run.documents.size_bytes(layout.partials_prefix(plan.stream, plan.shard, plan.shards))
    return CaptureReport(summed.images, summed.reused_images, -(-summed.images // plan.batch_images), stored)


def capture_stream(
    run: Run,
    plan: StreamPlan,
    taps: Taps,
    images: Images,
    *,
    device: str = "cpu",
    window_bytes: int | None = None,
    on_event: OnEvent = ignore,
) -> CaptureReport:
    """Dump the planned activations, batch by batch; batches that are committed already are kept.

    With a window, waits while as many bytes wait to be summed and discarded.

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
    lost = loss(plan.codec, plan.dtype)
    if lost is not None:
        on_event(Notice(stage, lost))
    if committed:
        _check_same_images(images, plan, committed)
        on_event(Reused(stage, f"{reused:,} of {plan.images:,} images"))
    with (
        reporting(stage, plan.images - reused, "images", on_event) as advance,
        BackgroundWriter(writer, advance) as background,
        Window(run.documents, plan, window_bytes, stage, on_event) as window,
    ):
        for batch, inputs in zip(missing, _loaded(images, plan, missing), strict=True):
            window.wait_for_room(background.waiting)
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
