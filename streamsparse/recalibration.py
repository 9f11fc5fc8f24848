"""BatchNorm recalibration: running statistics of the network that the refit has left.

    image -> conv, refitted -> BatchNorm 1 -> ... -> BatchNorm 2 -> ...
                               pass 1                pass 2: behind the new statistics of BatchNorm 1

A refitted layer has the mean responses of the original but less variance: the residual is missing. One pass per
BatchNorm, in order of execution and as far as that layer, gives exactly the statistics that its inputs have once
everything before it is final; batches that are normalised by their own statistics in a single pass would not.
Passes run through the network that is already cut, which is as cheap as the budget has made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamsparse.capture import Images
from streamsparse.errors import NonFiniteError
from streamsparse.events import Notice, OnEvent, ignore, reporting
from streamsparse.network import prune
from streamsparse.network.running import evaluating
from streamsparse.network.surgery import Keep, removed_entries
from streamsparse.store.solution import Buffers
from streamsparse.types import ChannelGraph

STAGE = "recalibrate"
_ROUND_OFF = 1e-14
"""Variance over squared mean at which float32 activations are constant."""


def recalibrated_statistics(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    images: Images,
    *,
    batch_images: int = 250,
    device: str = "cpu",
    on_event: OnEvent = ignore,
) -> Buffers:
    """Estimate the running mean and variance of every BatchNorm anew.

    The variance is over all images and positions at once (unbiased, as torch's own), not a mean over batches. A
    channel that is constant over the images keeps its variance: dividing by zero would magnify whatever differs
    later. Momentum and the counter of batches play no part.

    Args:
        model: the original with re-estimated weights, of the original's shapes; it is left as it is.
        graph: of the original.
        keep: positions that stay, by group.
        images: the calibration images.

    Returns:
        Running statistics in the original's shapes; those of removed channels are the model's own. Empty, with a
        notice, for a model that has no BatchNorm with running statistics.

    Raises:
        NonFiniteError: the refitted network's activations are not finite.
    """
    small = prune(model, graph, keep).to(device)
    with evaluating(small):
        calls = _calls(small, images.example.to(device))
        if not calls:
            on_event(Notice(STAGE, "the model has no BatchNorm with running statistics: nothing to recalibrate"))
            return {}
        with reporting(STAGE, len(calls) * len(images), "images", on_event) as advance:
            for name, count in calls.items():
                _assign(small.get_submodule(name), _moments(small, name, count, images, batch_images, advance))
    return _in_original_shape(model, small, list(calls), graph, keep)


def _calls(model: nn.Module, example: Tensor) -> dict[str, int]:
    """How often one image passes each BatchNorm that has running statistics, in order of execution."""
    calls: dict[str, int] = {}

    def counting(name: str) -> Any:
        def hook(*_: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    found = {name: module for name, module in model.named_modules() if _has_statistics(module)}
    handles = [module.register_forward_pre_hook(counting(name)) for name, module in found.items()]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


class _Moments:
    """Mean and summed squared deviations of rows that come in batches, float64 (mutable).

    Merged as in Chan, Golub and LeVeque (1979), The American Statistician 37(3), 1983, equation 1.5.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.mean: Tensor | float = 0.0
        self.deviations: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """rows: (rows, channels), any float dtype."""
        values = rows.double()
        count, mean = len(values), values.mean(0)
        shift, total = mean - self.mean, self.rows + count
        self.deviations = (
            self.deviations + (values - mean).square().sum(0) + shift.square() * (self.rows * count / total)
        )
        self.mean = self.mean + shift * (count / total)
        self.rows = total


class _EnoughError(Exception):
    """The layer in question has seen the batch: what follows is not needed."""


def _moments(model: nn.Module, name: str, calls: int, images: Images, batch_images: int, advance: Any) -> _Moments:
    """Of the inputs of one BatchNorm over all images."""
    moments = _Moments()
    spans = [range(first, min(first + batch_images, len(images))) for first in range(0, len(images), batch_images)]
    device = next(model.parameters()).device
    for span, batch in zip(spans, images.batches(spans), strict=True):
        with _summed(model.get_submodule(name), name, calls, moments):
            model(batch.to(device))
        advance(len(span))
    return moments


@contextmanager
def _summed(module: nn.Module, name: str, calls: int, moments: _Moments) -> Iterator[None]:
    """Within this context the module's inputs are added, and the model ends behind the last of them."""
    seen = 0

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        inputs = args[0] if args else kwargs["input"]  # (images, channels, *positions)
        moments.add(inputs.movedim(1, -1).reshape(-1, inputs.shape[1]))
        if not torch.isfinite(torch.as_tensor(moments.deviations)).all():
            raise NonFiniteError(
                "The refitted network has activations that are not finite.",
                expected="finite inputs of a BatchNorm", got="NaN or infinity", where=name,
                remedy="run `streamsparse refit` without --recalibrate and evaluate; keep more channels",
            )  # fmt: skip
        seen += 1
        if seen == calls:
            raise _EnoughError

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    except _EnoughError:
        pass
    finally:
        handle.remove()


def _assign(module: nn.Module, moments: _Moments) -> None:
    """Put the statistics into the module, in its own dtype."""
    mean, deviations = torch.as_tensor(moments.mean), torch.as_tensor(moments.deviations)
    variance = deviations / max(1, moments.rows - 1)
    module.running_mean.copy_(mean)  # type: ignore[operator]
    module.running_var.copy_(torch.where(variance > _ROUND_OFF * mean.square(), variance, module.running_var))  # type: ignore[operator,arg-type]


def _in_original_shape(
    model: nn.Module, small: nn.Module, names: list[str], graph: ChannelGraph, keep: Keep
) -> Buffers:
    """The statistics of the cut network at the places of the channels that stay."""
    removed = removed_entries(graph, keep)
    buffers: Buffers = {}
    for name in names:
        for key in (f"{name}.running_mean", f"{name}.running_var"):
            values = model.get_buffer(key).detach().cpu().double().numpy().copy()
            gone = removed.get(key, {}).get(0, set())
            values[[c for c in range(len(values)) if c not in gone]] = small.get_buffer(key).cpu().double().numpy()
            buffers[key] = values
    return buffers
