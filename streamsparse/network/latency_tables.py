"""Time every layer of a model alone, at a few widths: what `kernels.latencies` interpolates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from streamsparse.errors import UsageError
from streamsparse.kernels.costs import CostModel
from streamsparse.kernels.latencies import LatencyModel, LayerTable
from streamsparse.network.latency import least_seconds
from streamsparse.types import ChannelGraph, LayerGeometry

FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}


def latency_model(
    model: nn.Module,
    graph: ChannelGraph,
    costs: CostModel,
    example: Tensor,
    *,
    batch_images: int = 1,
    fractions: Sequence[float] = FRACTIONS,
    warm_up: int = 2,
    repeats: int = 7,
    on_layer: Callable[[str], None] = lambda _: None,
) -> LatencyModel:
    """Measure the model as a whole and each of its layers at all pairs of widths, on the device of `example`.

    Layers of the same shape are measured once. Kernels have steps that a table of a few widths does not know:
    the prediction is good to some ten percent, `evaluate --latency` measures.

    Args:
        model: the original, on the device.
        graph, costs: of this model.
        example: (1, *image shape).
        batch_images: passed at once.
        fractions: of every layer's inputs and outputs, up to 1.
        warm_up, repeats: of every measurement; the least counts, for a machine is rarely quiet.
        on_layer: hears of every layer.

    Raises:
        UsageError: fractions outside (0, 1].
    """
    if not fractions or min(fractions) <= 0 or max(fractions) != 1:
        raise UsageError("Widths are fractions of a layer's own.", expected="(0, 1], with 1", got=list(fractions))

    def measure(module: nn.Module, inputs: Tensor) -> float:
        return least_seconds(module, inputs, batch_images, warm_up=warm_up, repeats=repeats)

    whole = measure(model, example)
    known: dict[LayerGeometry, LayerTable] = {}
    tables = []
    for geometry in graph.layers.values():
        if f"{geometry.layer}.weight" not in costs.tensors:  # its weight is another layer's too
            continue
        shape = replace(geometry, layer="")
        if shape not in known:
            known[shape] = _table(geometry, fractions, example, measure)
        tables.append(replace(known[shape], layer=geometry.layer))
        on_layer(geometry.layer)
    return LatencyModel(costs, tuple(tables), whole, str(example.device), batch_images, torch.get_num_threads())


def _table(
    geometry: LayerGeometry,
    fractions: Sequence[float],
    example: Tensor,
    measure: Callable[[nn.Module, Tensor], float],
) -> LayerTable:
    outputs, inputs = _widths(geometry, fractions)
    seconds = np.zeros((len(outputs), len(inputs)))
    for (row, wide), (column, deep) in product(enumerate(outputs), enumerate(inputs)):
        layer, images = _layer(geometry, wide, deep)
        seconds[row, column] = measure(layer.to(example), images.to(example))
    for axis in (0, 1):  # padded with zeros, a narrower layer is a wider one: what takes longer is noise
        seconds = np.flip(np.minimum.accumulate(np.flip(seconds, axis), axis), axis)
    numbers = int(np.prod(geometry.output_shape)) // geometry.out_channels
    return LayerTable(geometry.layer, outputs, inputs, seconds, numbers)


def _widths(geometry: LayerGeometry, fractions: Sequence[float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths of the weight's first two dimensions; a grouped layer loses whole groups."""
    if geometry.groups > 1:
        kept = sorted({max(1, round(fraction * geometry.groups)) for fraction in fractions})
        each = geometry.out_channels // geometry.groups
        return tuple(each * groups for groups in kept), (geometry.in_channels // geometry.groups,)
    outputs, inputs = (
        tuple(sorted({max(1, round(fraction * channels)) for fraction in fractions}))
        for channels in (geometry.out_channels, geometry.in_channels)
    )
    return outputs, inputs


def _layer(geometry: LayerGeometry, outputs: int, inputs: int) -> tuple[nn.Module, Tensor]:
    """A layer of these widths with random weights, and one image for it."""
    if geometry.kind == "linear":
        shape = (*geometry.input_shape[:-1], inputs)
        return nn.Linear(inputs, outputs, bias=geometry.bias), torch.rand(1, *shape)
    groups = outputs * geometry.groups // geometry.out_channels if geometry.groups > 1 else 1
    channels = inputs * groups
    convolution = _CONVOLUTIONS[len(geometry.kernel)](
        channels, outputs, geometry.kernel, geometry.stride, _same_padding(geometry), geometry.dilation, groups,
        geometry.bias, geometry.padding_mode,
    )  # fmt: skip
    return convolution, torch.rand(1, channels, *geometry.input_shape[1:])


def _same_padding(geometry: LayerGeometry) -> tuple[int, ...]:
    """Zeros before and after may differ ("same" of even kernels); the more of the two takes as long."""
    return tuple(max(before, after) for before, after in geometry.padding)
