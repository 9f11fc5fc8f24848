"""Patches times weights are the layer: for random geometries, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from streamsparse.errors import StatisticsError
from streamsparse.kernels.patches import patches, responses
from tests.small import geometry_of, layers_with_inputs


def grouped_weight(layer: nn.Module, groups: int) -> Tensor:
    """(groups, outputs/groups, columns)"""
    weight = layer.get_parameter("weight")
    return weight.reshape(groups, weight.shape[0] // groups, -1)


@settings(deadline=None, max_examples=80)
@given(layers_with_inputs())
def test_patches_times_weight_is_the_layer(case: tuple[nn.Module, Tensor]) -> None:
    layer, inputs = case
    geometry = geometry_of(layer, inputs)
    rows = patches(inputs, geometry)  # (groups, rows, columns)
    with torch.no_grad():
        wanted = responses(layer(inputs), geometry)
        given_rows = rows @ grouped_weight(layer, geometry.groups).transpose(1, 2)
        if geometry.bias:
            given_rows = given_rows + layer.get_parameter("bias").reshape(geometry.groups, 1, -1)
    assert rows.shape == (geometry.groups, len(inputs) * geometry.patches_per_image, geometry.columns)
    torch.testing.assert_close(given_rows, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [((0, 1), (1, 2)), ((1, 0), (2, 1)), ((0, 0), (0, 3))])
def test_asymmetric_padding(padding: tuple[tuple[int, int], ...]) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(2, 3, (2, 4), bias=False).double(), torch.randn(3, 2, 5, 6).double()
    (top, bottom), (left, right) = padding
    with torch.no_grad():
        output = layer(F.pad(inputs, (left, right, top, bottom)))
        plain = geometry_of(layer, inputs)
        geometry = replace(plain, padding=padding, output_shape=tuple(output.shape[1:]))
        found = patches(inputs, geometry) @ layer.weight.flatten(1).T
    torch.testing.assert_close(found, responses(output, geometry), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["input", "output"])
def test_other_shapes_are_refused(side: str) -> None:
    inputs = torch.zeros(2, 3, 5, 5)
    geometry = geometry_of(nn.Conv2d(3, 4, 3), inputs)
    with pytest.raises(StatisticsError, match=f"The {side} activations of layer 'layer'") as raised:
        patches(inputs[..., :4], geometry) if side == "input" else responses(torch.zeros(2, 4, 3, 4), geometry)
    assert raised.value.expected is not None
    assert raised.value.got is not None
    assert raised.value.where == "layer"
