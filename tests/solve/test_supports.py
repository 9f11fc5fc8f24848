"""Refits at several supports against the refit that asks every fold."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.solve.refit import RidgeSearch, refit_layer
from streamsparse.solve.supports import LayerRefits
from tests.small import geometry_of, layers_with_inputs, reference_folds


@given(layers_with_inputs(), st.data())
@settings(max_examples=40)
def test_weights_are_those_of_the_refit_with_the_same_ridge(
    case: tuple[nn.Module, Tensor], data: st.DataObject
) -> None:
    layer, inputs = case
    inputs = torch.cat([inputs, inputs.flip(0)])  # an image for every fold
    geometry = geometry_of(layer, inputs[:1])
    sums = reference_folds(geometry, inputs, layer(inputs).detach(), 2)
    channels = st.integers(0, geometry.in_channels - 1)
    kept = np.array(sorted(data.draw(st.sets(channels, min_size=1))))
    refits = LayerRefits.of(geometry, sums)
    width = geometry.in_channels // geometry.groups
    supports = [kept[kept // width == number] - number * width for number in range(geometry.groups)]
    weight, bias = refits.at(kept)
    expected = refit_layer(geometry, sums, kept, RidgeSearch((refits._ridge(supports),)))
    assert weight.shape == tuple(layer.weight.shape)  # type: ignore[arg-type]
    np.testing.assert_allclose(weight, expected.weight, atol=1e-9)
    if bias is None:
        assert expected.bias is None
    else:
        np.testing.assert_allclose(bias, expected.bias, atol=1e-9)  # type: ignore[arg-type]
    removed = np.setdiff1d(np.arange(geometry.in_channels), kept)
    for channel in removed:
        own = weight.reshape(geometry.groups, -1, width, geometry.taps)[channel // width, :, channel % width]
        assert own.max(initial=0) == own.min(initial=0) == 0


def test_all_inputs_give_the_original_weights_back() -> None:
    layer = nn.Conv2d(4, 3, 3).double()

    images = torch.randn(30, 4, 6, 6, dtype=torch.float64)
    geometry = geometry_of(layer, images[:1])
    weight, bias = LayerRefits.of(geometry, reference_folds(geometry, images, layer(images).detach(), 3)).at(
        np.arange(4)
    )
    np.testing.assert_allclose(weight, layer.weight.detach().numpy(), atol=1e-6)
    assert bias is not None
    assert layer.bias is not None
    np.testing.assert_allclose(bias, layer.bias.detach().numpy(), atol=1e-6)
