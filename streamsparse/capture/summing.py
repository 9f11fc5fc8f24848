"""Capture into statistics: every layer is summed on the device while the model runs, and nothing is dumped.

For captures whose dump would be larger than the disk. The sums are those of the dumped route with float32 storage;
float16 storage rounds the activations first. Where a layer's output is its own linear map of its input
(`capture.own_outputs` measures that), its responses are derived from its Gram: they agree with the measured ones
to the round-off of the model's own forward pass, a relative 1e-6 in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamsparse.capture.images import Images, batch_digest
from streamsparse.capture.layer_sums import Finishing, LayerSums, begin_layer, resume_layer
from streamsparse.capture.own_outputs import PROBE_IMAGES, own_maps
from streamsparse.capture.taps import hooked, wrong_calls
from streamsparse.errors import RunMismatchError
from streamsparse.events import OnEvent, Reused, ignore, reporting
from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.precision import ProductDtype, precision_of
from streamsparse.store import Run
from streamsparse.store.growing import GrowingSums
from streamsparse.store.partials import Partials, Progress
from streamsparse.store.stream import StreamPlan

COMMIT_SECONDS = 60.0  # a kill loses at most so much work,
_WORK_PER_COMMIT = 20  # or so many times what a commit takes, where that is longer


class Looks(Protocol):
    """Looks at the growing statistics, and may end the capture before its last image."""

    def enough(self, images: int, statistics: Mapping[str, FoldSums]) -> bool:
        """Called after every batch, first with what an earlier call summed; `statistics` are finished when read."""
        ...

    def end(self, images: int) -> None:
        """Called once `enough` said so, before the sums over `images` are committed as the whole of the capture."""
        ...


@dataclass(frozen=True)
class Summed:
    """Images summed now, and images found summed."""

    images: int
    reused_images: int


def sum_stream(
    run: Run,
    plan: StreamPlan,
    model: nn.Module,
    images: Images,
    *,
    folds: int,
    product_dtype: ProductDtype = "float32",
    device: str = "cpu",
    looks: Looks | None = None,
    on_event: OnEvent = ignore,
) -> Summed:
    """Sum the planned layers over the shard's images; commits the sums from time to time and at the end.

    A shard that was begun for another number of images goes on from the whole batches that it holds.

    Args:
        plan: of the shard; its dtype and codec are not used.
        model: in evaluation mode, on `device`.
        folds: image i of the run belongs to fold i mod `folds`.
        product_dtype: of products within a block; sums are float64.
        looks: may end the capture before the plan does; only for a capture of one shard.

    Raises:
        NonFiniteError: activations that are not finite; what was committed before stays.
        RunMismatchError: the shard was begun with other images or settings.
        ModelError: a layer's outputs are not what they were on the first images, see `capture.own_outputs`.
    """
    partials = Partials(run, plan)
    done, digest = _resumed(partials, images, folds, precision_of(product_dtype).name)
    reused = _images_in(plan, done)
    if reused:
        on_event(Reused("capture", f"the sums of {reused:,} of {plan.images:,} images"))
    adding = _Adding(plan, model, folds, product_dtype, device, partials if done else None)
    enough = looks is not None and done > 0 and looks.enough(reused, Finishing(adding.names, partials.layer))
    spans = [] if enough else [_positions(plan, batch) for batch in range(done, plan.batches)]
    clock = _CommitClock()
    with reporting("capture", plan.images - reused, "images", on_event) as advance, torch.inference_mode():
        for span, batch in zip(spans, images.batches(spans), strict=False):
            digest = digest or batch_digest(batch)
            adding.add(batch.to(device), span.start)
            done += 1
            advance(len(span))
            if looks is not None and looks.enough(_images_in(plan, done), Finishing(adding.names, adding.finished)):
                enough = True
                break
            if clock.due() and done < plan.batches:
                with clock.committing():
                    partials.write(adding.progress(done, digest))
    if enough and looks is not None:
        looks.end(_images_in(plan, done))
        partials = Partials(run, replace(plan, images=_images_in(plan, done)))
    if spans:
        with reporting("capture: commit", len(plan.layers), "layers", on_event) as advance, torch.inference_mode():
            partials.write(adding.progress(done, digest, advance))
    elif partials.begun_with() != partials.plan:
        partials.replan()
    return Summed(_images_in(plan, done) - reused, reused)


def _images_in(plan: StreamPlan, batches: int) -> int:
    return min(batches * plan.batch_images, plan.images)


def _positions(plan: StreamPlan, batch: int) -> range:
    span = plan.span(batch)
    return range(plan.first_image + span.start, plan.first_image + span.stop)


class _CommitClock:
    """When the sums are due to be committed (mutable)."""

    def __init__(self) -> None:
        self._due_at = monotonic() + COMMIT_SECONDS

    def due(self) -> bool:
        return monotonic() > self._due_at

    @contextmanager
    def committing(self) -> Iterator[None]:
        """The next commit is due the later, the longer this one takes."""
        started = monotonic()
        yield
        ended = monotonic()
        self._due_at = ended + max(COMMIT_SECONDS, _WORK_PER_COMMIT * (ended - started))


def _resumed(partials: Partials, images: Images, folds: int, products: str) -> tuple[int, str]:
    """Batches that an earlier call committed, and the digest of the first; 0 and "" if there are none.

    Raises:
        RunMismatchError: it was begun with other settings or images, or has gone beyond this plan.
    """
    plan, begun = partials.plan, partials.begun_with()
    if begun is None:
        return 0, ""
    state = partials.state()
    held = state.batches * plan.batch_images  # of whole batches
    grown = begun == replace(plan, images=begun.images) and held <= min(begun.images, plan.images)
    first = batch_digest(next(images.batches([_positions(plan, 0)])))
    same = (first, folds, products) == (state.first_digest, state.folds, state.products)
    if not (begun == plan or grown) or not same:
        raise RunMismatchError(
            "This shard was begun with other images or settings.",
            expected=f"the batch size, shards and images that it was begun with, {state.folds} folds and "
            f"{state.products} products",
            got=f"others, or {folds} folds and {products} products",
            where=partials.prefix,
            remedy="repeat the first settings to resume, pass --overwrite to start anew, or choose another RUN",
        )
    return state.batches, state.first_digest


class _Adding:
    """Passes batches through the model and adds up what its layers see (mutable)."""

    def __init__(
        self,
        plan: StreamPlan,
        model: nn.Module,
        folds: int,
        product_dtype: ProductDtype,
        device: str,
        committed: Partials | None,
    ) -> None:
        """`committed`: the sums to go on with, or None."""
        self._layers = {layer.geometry.layer: layer for layer in plan.layers}
        self._sums: dict[str, LayerSums] = {}
        self._plan, self._model, self._folds, self._device = plan, model, folds, device
        self._product_dtype, self._committed = product_dtype, committed

    @property
    def names(self) -> list[str]:
        """Of the layers."""
        return list(self._layers)

    def finished(self, layer: str) -> FoldSums:
        """The sums so far, on the CPU."""
        return self._sums[layer].sums.finished()

    def progress(self, batches: int, first_digest: str, advance: Callable[[int], None] | None = None) -> Progress:
        """What is to be committed; calls `advance` with 1 for every layer that is taken."""
        products = precision_of(self._product_dtype).name
        return Progress(batches, first_digest, products, _Checked(self._sums, advance))

    def add(self, batch: Tensor, first_image: int) -> None:
        """Add a batch on the model's device, whose first image is number `first_image` of the run."""
        if not self._sums:
            self._begin(batch[:PROBE_IMAGES])
        seen = dict.fromkeys(self._layers, 0)

        def hook_of(layer: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
                seen[layer] += 1
                inputs = args[0] if args else kwargs["input"]
                self._sums[layer].add(inputs, output, first_image, self._product_dtype)

            return hook

        with hooked(self._model, {layer: hook_of(layer) for layer in self._layers}):  # in-place layers come later
            self._model(batch)
        for layer, number in seen.items():
            if number != self._layers[layer].calls:
                raise wrong_calls(layer, self._layers[layer].calls, number)

    def _begin(self, probe: Tensor) -> None:
        own = own_maps(self._model, {name: layer.geometry for name, layer in self._layers.items()}, probe)
        for name, layer in self._layers.items():
            if self._committed is not None:
                self._sums[name] = resume_layer(
                    self._committed.growing(name), own.get(name), self._device, layer.calls
                )
            else:
                images = self._plan.images
                self._sums[name] = begin_layer(layer, images, self._folds, own.get(name), self._device)


class _Checked(Mapping[str, GrowingSums]):
    """Sums by layer, each checked when it is taken."""

    def __init__(self, sums: Mapping[str, LayerSums], advance: Callable[[int], None] | None) -> None:
        self._sums, self._advance = sums, advance

    def __getitem__(self, layer: str) -> GrowingSums:
        found = self._sums[layer].sums
        found.check_means()
        if self._advance is not None:
            self._advance(1)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)
