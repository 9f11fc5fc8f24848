"""Sums of second moments: any cut, any order, any product precision, against the rows themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels.patches import patches, responses
from streamsparse.kernels.statistics import (
    FIELDS,
    Sums,
    empty,
    field_shapes,
    merge,
    moments,
    sums_bytes,
    update,
)
from streamsparse.types import LayerGeometry
from tests.small import geometry_of, largest_difference, layers_with_inputs

TOLERANCE = 1e-12  # relative to the largest entry of an array: any chunking, any merge order
FLOAT32_TOLERANCE = 1e-6


def numpy_sums(sums: Sums) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in sums.tensors().items()}


def with_outputs(case: tuple[nn.Module, Tensor]) -> tuple[LayerGeometry, Tensor, Tensor]:
    layer, inputs = case
    with torch.no_grad():
        return geometry_of(layer, inputs), inputs, layer(inputs)


def one_shot(geometry: LayerGeometry, inputs: Tensor, outputs: Tensor) -> Sums:
    sums = empty(geometry)
    update(sums, inputs, outputs, geometry)
    return sums


@settings(deadline=None, max_examples=50)
@given(layers_with_inputs(), st.data())
def test_any_chunking_and_merge_order_gives_the_one_shot_sums(
    case: tuple[nn.Module, Tensor], data: st.DataObject
) -> None:
    geometry, inputs, outputs = with_outputs(case)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(inputs)), max_size=4)))
    edges = [0, *cuts, len(inputs)]
    parts = [
        one_shot(geometry, inputs[first:last], outputs[first:last]) for first, last in itertools.pairwise(edges)
    ]
    while len(parts) > 1:
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.insert(data.draw(st.integers(0, len(parts))), merge(first, second))
    expected = numpy_sums(one_shot(geometry, inputs, outputs))
    assert largest_difference(numpy_sums(parts[0]), expected) <= TOLERANCE


@settings(deadline=None, max_examples=30)
@given(layers_with_inputs(), st.integers(1, 5000))
def test_any_block_size_gives_the_one_shot_sums(case: tuple[nn.Module, Tensor], block_bytes: int) -> None:
    geometry, inputs, outputs = with_outputs(case)
    sums = empty(geometry)
    update(sums, inputs, outputs, geometry, block_bytes=block_bytes)
    expected = numpy_sums(one_shot(geometry, inputs, outputs))
    assert largest_difference(numpy_sums(sums), expected) <= TOLERANCE


@settings(deadline=None, max_examples=30)
@given(layers_with_inputs())
def test_moments_are_those_of_the_rows(case: tuple[nn.Module, Tensor]) -> None:
    geometry, inputs, outputs = with_outputs(case)
    found = moments(one_shot(geometry, inputs, outputs))
    x, y = patches(inputs, geometry).numpy(), responses(outputs, geometry).numpy()
    count = x.shape[1]
    centred_x, centred_y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = max(1.0, float(np.square(x).mean()), float(np.square(y).mean()))
    expected = {
        "gram": np.einsum("gta,gtb->gab", centred_x, centred_x) / count,
        "cross": np.einsum("gta,gtb->gab", centred_x, centred_y) / count,
        "power": np.square(centred_y).sum((1, 2)) / count,
        "mean_x": x.mean(1),
        "mean_y": y.mean(1),
    }
    assert found.count == count
    for name, array in expected.items():
        np.testing.assert_allclose(getattr(found, name), array, rtol=1e-11, atol=1e-11 * scale)


@settings(deadline=None, max_examples=30)
@given(layers_with_inputs())
def test_float32_products_are_close(case: tuple[nn.Module, Tensor]) -> None:
    geometry, inputs, outputs = with_outputs(case)
    inputs, outputs = inputs.float(), outputs.float()
    sums = empty(geometry)
    update(sums, inputs, outputs, geometry, product_dtype=torch.float32)
    exact = one_shot(geometry, inputs, outputs)
    for name in FIELDS:
        found, expected = getattr(sums, name), getattr(exact, name)
        assert found.dtype == torch.float64
        scale = float(exact.gram.abs().max() + exact.power.max() + exact.sum_x.abs().max())
        assert float((found - expected).abs().max()) <= FLOAT32_TOLERANCE * max(scale, 1e-30)


def test_means_of_ten_thousand_standard_deviations() -> None:
    """The centred moments lose a factor 1e8 of 1e-16, and no more."""
    torch.manual_seed(0)
    inputs = torch.randn(4000, 5, dtype=torch.float64) + 1e4
    outputs = torch.randn(4000, 3, dtype=torch.float64) - 1e4
    geometry = geometry_of(nn.Linear(5, 3).double(), inputs)
    sums = empty(geometry)
    for part in range(0, 4000, 500):
        update(sums, inputs[part : part + 500], outputs[part : part + 500], geometry)
    found = moments(sums)
    np.testing.assert_allclose(found.gram[0], np.cov(inputs.T.numpy(), bias=True), atol=1e-6)
    x, y = (tensor.numpy() - tensor.numpy().mean(0) for tensor in (inputs, outputs))
    np.testing.assert_allclose(found.cross[0], x.T @ y / 4000, atol=1e-6)
    np.testing.assert_allclose(found.power[0], np.square(y).sum() / 4000, atol=1e-6)


def test_merge_leaves_its_arguments_alone() -> None:
    inputs = torch.randn(4, 3)
    geometry = geometry_of(nn.Linear(3, 2), inputs)
    sums = one_shot(geometry, inputs, torch.randn(4, 2))
    before = {name: tensor.clone() for name, tensor in sums.tensors().items()}
    merged = merge(sums, sums)
    merged.gram.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in sums.tensors().items())


def test_shapes_and_bytes_are_as_announced() -> None:
    inputs = torch.zeros(2, 4, 6, 6)
    geometry = geometry_of(nn.Conv2d(4, 6, 3, groups=2), inputs)
    tensors = empty(geometry).tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == field_shapes(geometry)
    assert sum(tensor.numel() * 8 for tensor in tensors.values()) == sums_bytes(geometry)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(side: str, value: float) -> None:
    inputs, outputs = torch.randn(3, 2, 4, 4), torch.randn(3, 5, 2, 2)
    (inputs if side == "input" else outputs)[1, 0, 1, 1] = value
    geometry = geometry_of(nn.Conv2d(2, 5, 3), torch.zeros(1, 2, 4, 4))
    with pytest.raises(NonFiniteError, match="layer 'layer'"):
        update(empty(geometry), inputs, outputs, geometry)


def test_unequal_numbers_of_images_and_layers_are_refused() -> None:
    geometry = geometry_of(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(StatisticsError, match="another number of input images"):
        update(empty(geometry), torch.zeros(3, 3), torch.zeros(2, 2), geometry)
    other = geometry_of(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(StatisticsError, match="differently shaped"):
        merge(empty(geometry), empty(other))
    with pytest.raises(StatisticsError, match="no patches"):
        moments(empty(geometry))


def test_what_varies_by_round_off_alone_is_constant() -> None:
    """A dead branch answers with its bias: large, and equal up to round-off."""
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(50, 2, dtype=torch.float64), torch.full((50, 1), 3e4, dtype=torch.float64)], 1)
    outputs = 1e4 * (1 + 1e-14 * torch.randn(50, 4, dtype=torch.float64))
    geometry = geometry_of(nn.Linear(3, 4).double(), inputs)
    sums = empty(geometry)
    update(sums, inputs, outputs, geometry)
    found = moments(sums)
    assert found.power[0] == 0
    assert not found.cross.any()
    assert not found.gram[0, 2].any()
    np.testing.assert_allclose(found.gram[0, :2, :2], np.cov(inputs[:, :2].T.numpy(), bias=True), rtol=1e-12)
