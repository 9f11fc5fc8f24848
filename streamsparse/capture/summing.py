"""Capture into statistics: every layer is summed on the device while the model runs, and nothing is dumped.

For captures whose dump would be larger than the disk. The sums are those of the dumped route with float32 storage;
float16 storage rounds the activations first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from streamsparse.capture.images import Images, batch_digest
from streamsparse.capture.taps import wrong_calls
from streamsparse.errors import RunMismatchError
from streamsparse.events import OnEvent, Reused, ignore, reporting
from streamsparse.kernels.folds import FoldShifts, FoldSums, empty_folds, finish_folds, merge_folds, update_folds
from streamsparse.kernels.statistics import Sums
from streamsparse.store import Run
from streamsparse.store.partials import Partials, Progress
from streamsparse.store.stream import StreamPlan
from streamsparse.types import LayerGeometry

COMMIT_SECONDS = 60.0  # a kill loses at most so much work


def sum_stream(
    run: Run,
    plan: StreamPlan,
    model: nn.Module,
    images: Images,
    *,
    folds: int,
    product_dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    on_event: OnEvent = ignore,
) -> tuple[int, int]:
    """Sum the planned layers over the shard's images; commits the sums from time to time and at the end.

    Args:
        plan: of the shard; its dtype and codec are not used.
        model: in evaluation mode, on `device`.
        folds: image i of the run belongs to fold i mod `folds`.
        product_dtype: of products within a block; sums are float64.

    Returns:
        images summed now, and images found summed.

    Raises:
        NonFiniteError: activations that are not finite; what was committed before stays.
        RunMismatchError: the shard was begun with other images or settings.
    """
    partials = Partials(run, plan)
    done, before, digest = _resumed(partials, images, folds)
    reused = min(done * plan.batch_images, plan.images)
    if reused:
        on_event(Reused("capture", f"the sums of {reused:,} of {plan.images:,} images"))
    spans = [_positions(plan, batch) for batch in range(done, plan.batches)]
    geometries = {layer.geometry.layer: layer.geometry for layer in plan.layers}
    calls = {layer.geometry.layer: layer.calls for layer in plan.layers}
    sums = {layer: empty_folds(geometry, folds, device) for layer, geometry in geometries.items()}
    committed_at = monotonic()
    with reporting("capture", plan.images - reused, "images", on_event) as advance, torch.inference_mode():
        for span, batch in zip(spans, images.batches(spans), strict=True):
            digest = digest or batch_digest(batch)
            with _summing(model, geometries, calls, sums, span.start, product_dtype):
                model(batch.to(device))
            done += 1
            advance(len(span))
            if monotonic() - committed_at > COMMIT_SECONDS and done < plan.batches:
                partials.write(Progress(done, digest, _finished(before, sums, geometries)))
                committed_at = monotonic()
        if spans:
            partials.write(Progress(done, digest, _finished(before, sums, geometries)))
    return plan.images - reused, reused


def _positions(plan: StreamPlan, batch: int) -> range:
    span = plan.span(batch)
    return range(plan.first_image + span.start, plan.first_image + span.stop)


def _finished(
    before: Mapping[str, FoldSums], sums: Mapping[str, FoldShifts], geometries: Mapping[str, LayerGeometry]
) -> dict[str, FoldSums]:
    """What an earlier call committed and what this one has summed, on the CPU."""
    finished = {layer: finish_folds(parts, geometries[layer]) for layer, parts in sums.items()}
    on_cpu = {
        layer: tuple(Sums(**{name: tensor.cpu() for name, tensor in part.tensors().items()}) for part in parts)
        for layer, parts in finished.items()
    }
    return {layer: merge_folds(before[layer], parts) for layer, parts in on_cpu.items()} if before else on_cpu


def _resumed(partials: Partials, images: Images, folds: int) -> tuple[int, dict[str, FoldSums], str]:
    """Batches that an earlier call committed, their sums (none: empty), and the digest of the first batch."""
    plan, begun = partials.plan, partials.begun_with()
    if begun is None:
        return 0, {}, ""
    progress = partials.read()
    assert progress is not None  # there is a plan
    first = batch_digest(next(images.batches([_positions(plan, 0)])))
    same_folds = all(len(parts) == folds for parts in progress.sums.values())
    if begun != plan or first != progress.first_digest or not same_folds:
        raise RunMismatchError(
            "This shard was begun with other images or settings.",
            expected="the batch size, folds, shards and images that it was begun with",
            got="others",
            where=partials.prefix,
            remedy="repeat the first settings to resume, pass --overwrite to start anew, or choose another RUN",
        )
    return progress.batches, progress.sums, progress.first_digest


@contextmanager
def _summing(
    model: nn.Module,
    geometries: Mapping[str, LayerGeometry],
    calls: Mapping[str, int],
    sums: Mapping[str, FoldShifts],
    first_image: int,
    product_dtype: torch.dtype,
) -> Iterator[None]:
    """Hooks that add each layer's input and output as soon as they exist; in-place layers come later."""
    seen = dict.fromkeys(geometries, 0)

    def hook_of(layer: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            seen[layer] += 1
            inputs = args[0] if args else kwargs["input"]
            update_folds(sums[layer], inputs, output, geometries[layer], first_image, product_dtype)

        return hook

    handles = [
        model.get_submodule(layer).register_forward_hook(hook_of(layer), with_kwargs=True) for layer in geometries
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for layer, number in seen.items():
        if number != calls[layer]:
            raise wrong_calls(layer, calls[layer], number)
