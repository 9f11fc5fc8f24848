"""What a capture will do, before it does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamsparse.capture.taps import count_calls
from streamsparse.errors import ModelError, UsageError
from streamsparse.kernels.precision import PRECISIONS
from streamsparse.store.codecs import DEFAULT_CODEC, compressors
from streamsparse.store.layout import ORIGINAL_STREAM
from streamsparse.store.stream import CapturedLayer, StreamPlan
from streamsparse.types import ChannelGraph

SINKS = ("activations", "statistics")
_DEVICES = "cpu | cuda | cuda:N"


@dataclass(frozen=True)
class CaptureSettings:
    """How activations are dumped.

    Attributes:
        dtype: "float16" (checked for overflow) or "float32".
        codec: by name, see `store.codecs`.
        batch_images: images per forward pass and per committed batch.
        shard, shards: capture shard number `shard` (from 0) of `shards`.
        device: of the model, "cpu" or "cuda" or "cuda:N".
        sink: "activations" dumps them; "statistics" sums them on the device and dumps nothing.
        folds: of the statistics sink, see `AccumulateSettings`.
        window_bytes: of activations that wait on the store to be summed and discarded; the capture waits when they
            are so many. None for no limit.
        products: of the statistics sink, see `AccumulateSettings`.
    """

    dtype: str = "float16"
    codec: str = DEFAULT_CODEC
    batch_images: int = 250
    shard: int = 0
    shards: int = 1
    device: str = "cpu"
    sink: str = "activations"
    folds: int = 5
    products: str = "float32"
    window_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_sink(self.sink, self.folds, self.products)
        if self.dtype not in ("float16", "float32"):
            raise UsageError("Unknown dtype.", expected="float16 | float32", got=self.dtype, where="--dtype")
        compressors(self.codec, self.dtype)
        _check_device(self.device)
        if self.batch_images < 1:
            raise UsageError("A batch holds images.", expected="≥ 1", got=self.batch_images, where="--batch-size")
        if not 0 <= self.shard < self.shards:
            raise UsageError(
                "There is no such shard.",
                expected=f"I/N with 1 ≤ I ≤ N, such as 1/{self.shards}",
                got=f"{self.shard + 1}/{self.shards}",
                where="--shard",
            )


def _check_sink(sink: str, folds: int, products: str) -> None:
    if sink not in SINKS:
        raise UsageError("Unknown sink.", expected=" | ".join(SINKS), got=sink, where="--sink")
    if folds < 2:
        raise UsageError("Held-out errors need folds.", expected="≥ 2", got=folds, where="--folds")
    if products not in PRECISIONS:
        raise UsageError(
            "Unknown precision of products.", expected=" | ".join(PRECISIONS), got=products, where="--products"
        )


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError("Unknown device.", expected=_DEVICES, got=device, where="--device") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "This machine has no usable CUDA device.",
            expected="a CUDA device and a build of torch for it",
            got=device,
            where="--device",
            remedy="capture with --device cpu, or on another machine",
        )


def plan_stream(
    model: nn.Module,
    graph: ChannelGraph,
    example: Tensor,
    images: int,
    settings: CaptureSettings,
    *,
    stream: str = ORIGINAL_STREAM,
    layers: Sequence[str] | None = None,
) -> StreamPlan:
    """Plan one shard of one stream.

    Args:
        model: on the device of `example`, in eval mode.
        graph: its channel groups; their consumers are captured.
        example: one image, (1, *shape).
        images: of the whole run.
        settings: how to dump.
        stream: name of the pass.
        layers: only these consumers.

    Raises:
        ModelError: no layer to capture.
    """
    wanted = [layer for layer in consumers_of(graph) if layers is None or layer in layers]
    calls = count_calls(model, wanted, example)
    if not calls:
        raise ModelError(
            "The model has no layer whose input channels could be removed.",
            expected="a convolution or linear layer that consumes a channel group",
            got=f"{len(graph.groups)} groups, {len(graph.frozen)} frozen sets of channels",
            remedy="`streamsparse inspect --groups` names the operations that freeze the channels",
        )
    first, last = (images * part // settings.shards for part in (settings.shard, settings.shard + 1))
    return StreamPlan(
        stream=stream,
        shard=settings.shard,
        shards=settings.shards,
        first_image=first,
        images=last - first,
        batch_images=max(1, min(settings.batch_images, last - first)),
        dtype=settings.dtype,
        codec=settings.codec,
        layers=tuple(CapturedLayer(graph.layers[layer], number) for layer, number in calls.items()),
    )


def consumers_of(graph: ChannelGraph) -> list[str]:
    """Layers that consume a channel group, in order of execution."""
    consuming = {consumer.layer for group in graph.groups for consumer in group.consumers}
    return [layer for layer in graph.layers if layer in consuming]
