"""Layers whose output is their own linear map of their input: their responses need no sums of their own.

For an ordinary convolution or linear layer y = Q x + b, every sum of the responses follows from those of the inputs
(`kernels.shift_sums.own_responses`). Hooks, subclasses with another forward, quantisation or autocast break this
without a trace in the channel graph, so it is measured, twice:

    before the pass    on a few images, output by output, to OUTPUT_TOLERANCE; a layer that fails keeps its
                       measured responses
    after the pass     Σ y of all images at every commit, and Σ ‖y‖² when the sums are finished, to
                       `store.growing.TOTAL_TOLERANCE`; a layer that fails stops the run, for its outputs depend on
                       more than its input
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamsparse.capture.taps import hooked
from streamsparse.errors import NonFiniteError
from streamsparse.kernels.shift_sums import ShiftSums
from streamsparse.types import LayerGeometry

PROBE_IMAGES = 2
OUTPUT_TOLERANCE = 1e-6
"""Largest difference per output channel, relative to the largest Σ |Q||x| + |b| there: the scale of round-off."""

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@dataclass(frozen=True, eq=False)
class OwnMap:
    """The weight (outputs, channels per group, *kernel) and bias (outputs,) that make a layer's output."""

    weight: Tensor
    bias: Tensor | None

    def outputs(self, inputs: Tensor, geometry: LayerGeometry) -> Tensor:
        """(images, *input_shape) -> (images, *output_shape), in the weight's dtype, whatever autocast says."""
        with torch.autocast(inputs.device.type, enabled=False):
            if geometry.kind == "linear":
                return F.linear(inputs, self.weight, self.bias)
            convolve = F.conv1d if geometry.kind == "conv1d" else F.conv2d
            options: tuple[Any, ...] = (geometry.dilation, geometry.groups)
            if geometry.padding_mode == "zeros" and all(before == after for before, after in geometry.padding):
                padding = tuple(before for before, _ in geometry.padding)
                return convolve(inputs, self.weight, self.bias, geometry.stride, padding, *options)
            amounts = [side for pair in reversed(geometry.padding) for side in pair]
            padded = F.pad(inputs, amounts, mode=_PAD_MODES[geometry.padding_mode])
            return convolve(padded, self.weight, self.bias, geometry.stride, 0, *options)

    def explains(self, inputs: Tensor, outputs: object, geometry: LayerGeometry) -> bool:
        """Whether `outputs` are this map's, to OUTPUT_TOLERANCE in every channel."""
        if not isinstance(outputs, Tensor) or not inputs.dtype == outputs.dtype == self.weight.dtype:
            return False
        expected = self.outputs(inputs, geometry)
        if expected.shape != outputs.shape:
            return False
        size = OwnMap(self.weight.abs(), None if self.bias is None else self.bias.abs())
        scale = _largest(size.outputs(inputs.abs(), geometry), geometry)
        return bool((_largest(expected - outputs, geometry) <= OUTPUT_TOLERANCE * scale).all())


def _largest(outputs: Tensor, geometry: LayerGeometry) -> Tensor:
    """Largest magnitude by output channel; NaN where there is one."""
    rows = outputs.reshape(-1, geometry.out_channels) if geometry.kind == "linear" else outputs.transpose(0, 1)
    return rows.abs().amax(0) if geometry.kind == "linear" else rows.flatten(1).abs().amax(1)


def own_maps(model: nn.Module, geometries: Mapping[str, LayerGeometry], images: Tensor) -> dict[str, OwnMap]:
    """The maps of those layers whose every call on these images gave exactly their own linear output.

    Args:
        model: in evaluation mode, without gradients.
        geometries: of the layers to look at.
        images: a few of the model's inputs, on its device.
    """
    mapped = {layer: _own_map(model.get_submodule(layer), geometry) for layer, geometry in geometries.items()}
    found = {layer: own for layer, own in mapped.items() if own is not None}
    refuted: set[str] = set()

    def hook_of(layer: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            inputs = args[0] if args else kwargs["input"]
            if not found[layer].explains(inputs, output, geometries[layer]):
                refuted.add(layer)

        return hook

    with hooked(model, {layer: hook_of(layer) for layer in found}):
        model(images)
    return {layer: own for layer, own in found.items() if layer not in refuted}


def _own_map(module: nn.Module, geometry: LayerGeometry) -> OwnMap | None:
    """From the module's tensors, if it has tensors of the right shapes under these names."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None) if geometry.bias else None
    shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != shape or weight.is_quantized:
        return None
    if geometry.bias and not (isinstance(bias, Tensor) and bias.shape == shape[:1]):
        return None
    return OwnMap(weight.detach(), None if bias is None else bias.detach())


def add_totals(sums: ShiftSums, outputs: Tensor, geometry: LayerGeometry) -> None:
    """Add Σ y and Σ ‖y‖² of measured outputs, (images, *output_shape), to the responses' sums, in place.

    Raises:
        NonFiniteError: NaN or infinity among the outputs.
    """
    if geometry.kind == "linear":
        runs = outputs.reshape(1, -1, geometry.out_channels).transpose(1, 2)  # (1, outputs, patches)
    else:
        runs = outputs.flatten(2)  # (images, outputs, positions)
    sums.sum_y.add_(runs.sum(-1).double().sum(0).view_as(sums.sum_y))  # torch sums pairwise
    sums.power[0] += torch.linalg.vector_norm(runs, dim=-1).double().square().sum()  # short runs suit float32
    if not bool(torch.isfinite(sums.power).all() & torch.isfinite(sums.sum_y).all()):
        raise NonFiniteError(
            f"The output of layer '{geometry.layer}' is not finite.",
            expected="finite activations",
            got="NaN or infinity",
            where=geometry.layer,
            remedy="check the model's weights and the preprocessing of the images",
        )
