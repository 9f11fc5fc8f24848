"""A layer's input and output activations as the rows of a linear regression.

    convolution   input  (images, channels, height, width)  ->  patches   (groups, rows, columns)
                  output (images, outputs, height', width') ->  responses (groups, rows, outputs/groups)
    linear        input  (images, ..., features)            ->  patches   (1, rows, features)

Rows run over images, then output positions; columns over (channel, tap), channel-major as `weight.flatten(1)`.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from streamsparse.errors import StatisticsError
from streamsparse.types import LayerGeometry

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def patches(inputs: Float[Tensor, "images ..."], geometry: LayerGeometry) -> Float[Tensor, "groups rows columns"]:
    """Rows that multiply the layer's weight; the dtype is that of `inputs`.

    Raises:
        StatisticsError: the shape of one image is not `geometry.input_shape`.
    """
    _check_shape(inputs, geometry.input_shape, geometry, "input")
    if geometry.kind == "linear":
        return inputs.reshape(1, -1, geometry.in_channels)
    images = inputs if len(geometry.kernel) == 2 else inputs.unsqueeze(-2)
    # a 1-d convolution is a 2-d one over images of height 1
    kernel, stride, dilation = (_two(value, 1) for value in (geometry.kernel, geometry.stride, geometry.dilation))
    images = F.pad(images, _pad_amounts(geometry), mode=_PAD_MODES[geometry.padding_mode])
    columns = F.unfold(images, kernel, dilation=dilation, stride=stride)  # (images, channels·taps, positions)
    count, _, positions = columns.shape
    split = columns.view(count, geometry.groups, geometry.columns, positions)
    return split.permute(1, 0, 3, 2).reshape(geometry.groups, count * positions, geometry.columns)


def responses(
    outputs: Float[Tensor, "images ..."], geometry: LayerGeometry
) -> Float[Tensor, "groups rows outputs"]:
    """The layer's outputs, one row per patch, in the order of `patches`.

    Raises:
        StatisticsError: the shape of one image is not `geometry.output_shape`.
    """
    _check_shape(outputs, geometry.output_shape, geometry, "output")
    if geometry.kind == "linear":
        return outputs.reshape(1, -1, geometry.out_channels)
    count = outputs.shape[0]
    split = outputs.reshape(count, geometry.groups, geometry.out_channels // geometry.groups, -1)
    return split.permute(1, 0, 3, 2).reshape(geometry.groups, -1, geometry.out_channels // geometry.groups)


def _two(value: tuple[int, ...], fill: int) -> tuple[int, int]:
    return (value[0], value[1]) if len(value) == 2 else (fill, value[0])


def _pad_amounts(geometry: LayerGeometry) -> list[int]:
    """`F.pad` counts from the last dimension backwards."""
    amounts = [side for pair in reversed(geometry.padding) for side in pair]
    return amounts if len(geometry.kernel) == 2 or geometry.padding_mode == "zeros" else [*amounts, 0, 0]


def _check_shape(tensor: Tensor, expected: tuple[int, ...], geometry: LayerGeometry, side: str) -> None:
    if tuple(tensor.shape[1:]) != expected:
        raise StatisticsError(
            f"The {side} activations of layer '{geometry.layer}' have another shape than the layer.",
            expected=f"(images, {', '.join(map(str, expected))})",
            got=tuple(tensor.shape),
            where=geometry.layer,
            remedy="capture the run again with the model it belongs to",
        )
