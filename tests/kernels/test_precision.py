"""Products in single precision and less: sums stay consistent, channels that hardly vary keep their variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamsparse.errors import StatisticsError
from streamsparse.kernels.folds import FoldSums, empty_folds, finish_folds, split_moments, total, update_folds
from streamsparse.kernels.front import held_out_errors, solve_front
from streamsparse.kernels.gram_plan import gram_plan
from streamsparse.kernels.patches import patches
from streamsparse.kernels.pivots import add_correction, subtract_pivots
from streamsparse.kernels.precision import PRECISIONS, precision_of
from streamsparse.kernels.regression import Regression, refit, relative_error, safe_ridge
from streamsparse.kernels.shift_sums import empty_shifts, finish
from streamsparse.kernels.shifts import update_shifts
from streamsparse.kernels.statistics import Moments, moments
from streamsparse.types import LayerGeometry
from tests.kernels.test_shifts import activations, assert_close, convolution, geometries, linear

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
]
SIGNIFICANT_BITS = {"float64": 53, "float32": 24, "tf32": 11, "bfloat16": 8}
PADDED = convolution((8, 6), (9, 9), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
PLAIN = linear(12, 5)


@pytest.mark.parametrize("name", PRECISIONS)
def test_factors_have_the_bits_that_the_name_says(name: str) -> None:
    precision = precision_of(name)
    values = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    values = values.to(precision.computed)
    kept = values.clone()
    rounded = precision.rounded(values).double()
    fraction, _ = torch.frexp(rounded)
    assert torch.equal(values, kept)
    scaled = fraction * 2.0 ** SIGNIFICANT_BITS[name]
    assert torch.equal(scaled, scaled.round())
    worst = float(((rounded - values.double()) / values.double()).abs().max())
    assert worst <= 2.0 ** -SIGNIFICANT_BITS[name]
    assert name in ("float64", "float32") or worst > 2.0 ** -(SIGNIFICANT_BITS[name] + 1)


def test_rounding_keeps_what_is_not_finite() -> None:
    worst = torch.tensor([0x7FFFFFFF, -1, 0x7F800000], dtype=torch.int32).view(torch.float32)  # NaN, NaN, infinity
    for name in ("tf32", "bfloat16"):
        assert not torch.isfinite(precision_of(name).rounded(worst)).any()


@pytest.mark.parametrize("before", ["ieee", "none"])
def test_the_process_keeps_its_own_setting(before: str) -> None:
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    asked, matmul.fp32_precision = matmul.fp32_precision, before
    try:
        with pytest.raises(StatisticsError), precision_of("tf32").on(torch.device("cpu")):
            raise StatisticsError("anything")
        assert matmul.fp32_precision == before
    finally:
        matmul.fp32_precision = asked


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["tf32", "bfloat16"])
@given(geometry=geometries(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_coarse_products_are_those_of_rounded_activations(
    device: str, name: str, geometry: LayerGeometry, seed: int
) -> None:
    assume(geometry.padding_mode == "zeros")
    precision = precision_of(name)
    inputs, outputs = (precision.rounded(values).float() for values in activations(geometry, 4, seed))
    sums = empty_shifts(geometry, device)
    update_shifts(sums, inputs.to(device), outputs.to(device), geometry, product_dtype=name)
    found = {field: values.cpu() for field, values in finish(sums, geometry).tensors().items()}
    sides = [values.transpose(0, 1).clone() for values in (inputs, outputs)]
    if gram_plan(geometry).method == "patches":  # whose columns may be steady where no channel is
        sides.append(patches(inputs, geometry).transpose(1, 2).flatten(0, 1).clone())
    steady = any(subtract_pivots(values.contiguous())[1] is not None for values in sides)
    assert_close(found, inputs, outputs, geometry, 2.0 ** -SIGNIFICANT_BITS[name] if steady else 1e-6)


@given(
    mean=st.floats(-1e4, 1e4), spread=st.sampled_from([0.0, 1e-3, 1.0]), seed=st.integers(0, 99),
    other=st.sampled_from([0.0, 50.0]), groups=st.sampled_from([1, 2]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_differences_from_pivots_and_the_correction_give_the_raw_products(
    mean: float, spread: float, seed: int, other: float, groups: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * groups, 400, generator=generator)
    x[-2] = mean + spread * x[-2]
    y = torch.randn(2 * groups, 400, generator=generator)
    y[1] += other
    (a, p), (b, q) = subtract_pivots(x, shared=True), subtract_pivots(y, shared=True)
    assert q is None if other == 0 else q is not None and q.channels.tolist() == [1]
    assert p is not None if abs(mean) > 6 else p is None or abs(mean) > 2 * spread
    grouped = [values.double().view(groups, -1, 400) for values in (a, b, x, y)]
    result = grouped[0] @ grouped[1].transpose(1, 2)
    add_correction(result, (p, q), (a.double().sum(1), b.double().sum(1)), 400)
    # a − p is a float32 number: exact to 1e-7 of the deviation
    bound = 1e-6 * 400 * float((a.abs().max() + 1) * (b.abs().max() + other + 1))
    torch.testing.assert_close(result, grouped[2] @ grouped[3].transpose(1, 2), rtol=1e-6, atol=bound)


def test_what_is_far_from_zero_leaves_others_alone() -> None:
    values = torch.randn(3, 1000)
    values[1] += 100
    kept = values.clone()
    shared, _ = subtract_pivots(values, shared=True)
    assert torch.equal(values, kept)
    found, pivots = subtract_pivots(values)
    assert pivots is not None
    assert found is values
    assert torch.equal(found, shared)
    assert pivots.channels.tolist() == [1]
    assert float(pivots.values) == pytest.approx(100, abs=1)
    assert torch.equal(values[[0, 2]], kept[[0, 2]])
    for plain in (kept.double(), torch.zeros(3, 0), kept[[0, 2]]):
        same, none = subtract_pivots(plain)
        assert same is plain
        assert none is None


FLAWS = ("none", "dead", "constant", "duplicate", "far", "very far", "rare", "all")


def flawed(geometry: LayerGeometry, flaw: str, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rectified inputs with one odd channel or more, and responses that depend on them, one of these constant."""
    generator = torch.Generator().manual_seed(seed)
    inputs, _ = activations(geometry, images, seed)
    channels = inputs if geometry.kind == "linear" else inputs.transpose(1, -1)  # channels last, as a view
    noise = torch.randn(channels[..., 0].shape, generator=generator)
    if flaw in ("dead", "all"):
        channels[..., 0] = 0
    if flaw in ("constant", "all"):
        channels[..., 1] = 3.3
    if flaw in ("duplicate", "all"):
        channels[..., 2] = channels[..., 3]
    if flaw in ("far", "all"):
        channels[..., 4] = 1000 + noise
    if flaw in ("very far", "all"):
        channels[..., 5] = 1000 + 1e-3 * noise
    if flaw in ("rare", "all"):
        channels[..., 6] = 700 + 1000.0 * (noise > 3)
    weight = torch.randn(geometry.out_channels, geometry.in_channels, *geometry.kernel, generator=generator)
    outputs = layer_outputs(inputs, weight / geometry.columns**0.5, geometry)
    spread = outputs.std().clamp_min(1e-3)
    outputs = outputs + 0.3 * spread * torch.randn(outputs.shape, generator=generator)
    if geometry.kind == "linear":
        outputs[..., 0] = -7.7
    else:
        outputs[:, 0] = -7.7
    return inputs, outputs


def layer_outputs(inputs: Tensor, weight: Tensor, geometry: LayerGeometry) -> Tensor:
    if geometry.kind == "linear":
        return torch.nn.functional.linear(inputs, weight)
    return torch.nn.functional.conv2d(inputs, weight, None, geometry.stride, geometry.padding[0][0])


def statistics_of(geometry: LayerGeometry, flaw: str, name: str, images: int = 60) -> FoldSums:
    inputs, outputs = flawed(geometry, flaw, images)
    sums = empty_folds(geometry, 3)
    for first in range(0, images, 20):
        batch = slice(first, first + 20)
        update_folds(sums, inputs[batch], outputs[batch], geometry, first, name)
    return finish_folds(sums, geometry)


def largest_error(found: Moments, exact: Moments) -> float:
    """Of Gram and cross, entry by entry, in units of the standard deviations of its row and column."""
    diagonal = np.sqrt(exact.gram.diagonal(axis1=1, axis2=2))
    power = np.sqrt(exact.power)[:, None, None]
    errors = []
    for ours, theirs, unit in (
        (found.gram, exact.gram, diagonal[:, :, None] * diagonal[:, None, :]),
        (found.cross, exact.cross, diagonal[:, :, None] * power),
    ):
        assert not ours[unit == 0].any() if unit.shape == ours.shape else True
        errors.append(float((np.abs(ours - theirs) / np.where(unit > 0, unit, 1.0)).max()))
    return max(*errors, float((np.abs(found.power - exact.power) / np.maximum(exact.power, 1e-300)).max()))


@pytest.mark.parametrize("geometry", [PADDED, PLAIN], ids=("convolution", "linear"))
@pytest.mark.parametrize("flaw", FLAWS)
def test_moments_of_single_precision_products_are_those_of_double_precision(
    geometry: LayerGeometry, flaw: str
) -> None:
    exact = moments(total(statistics_of(geometry, flaw, "float64")))
    found = moments(total(statistics_of(geometry, flaw, "float32")))
    # a channel far from zero beside its padding: nearly equal numbers that all round the same way
    assert largest_error(found, exact) <= (5e-5 if flaw in ("constant", "far", "very far", "rare", "all") else 2e-6)
    constant = exact.gram.diagonal(axis1=1, axis2=2) == 0
    assert np.array_equal(constant, found.gram.diagonal(axis1=1, axis2=2) == 0)


def test_every_method_keeps_the_variance_of_a_channel_far_from_zero() -> None:
    """Also where the layer takes the path of explicit patches, whose padding is no part of the channel."""
    few = convolution((7, 2), (8, 8), (2, 2), (2, 2), ((1, 1), (1, 1)), (1, 1))
    exact = moments(total(statistics_of(few, "all", "float64")))
    assert largest_error(moments(total(statistics_of(few, "all", "float32"))), exact) <= 5e-5


@pytest.mark.parametrize("geometry", [PADDED, PLAIN], ids=("convolution", "linear"))
@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
def test_any_precision_is_solved(geometry: LayerGeometry, flaw: str, name: str) -> None:
    """No error, finite fronts and held-out errors, close to those of double precision."""
    tolerance = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 2e-2}[name]
    held_out = {}
    for precision in ("float64", name):
        found = statistics_of(geometry, flaw, precision)
        training, test = (regression_of(part, geometry) for part in split_moments(found, 0))
        ridge = safe_ridge((training,))
        assert ridge <= 1e-4  # equal numbers, such as a constant channel's at the border, all round the same way
        front = solve_front((training,), method="elimination")
        assert np.isfinite(front.errors).all()
        support = front.supports[training.positions // 2]
        held_out[precision] = relative_error(test, support, refit(training, support, 1e-6))
    assert held_out[name] == pytest.approx(held_out["float64"], abs=tolerance)


@pytest.mark.parametrize("geometry", [PADDED, PLAIN], ids=("convolution", "linear"))
def test_well_conditioned_layers_get_the_same_supports_and_weights(geometry: LayerGeometry) -> None:
    exact, found = (
        regression_of(moments(total(statistics_of(geometry, "none", name))), geometry)
        for name in ("float64", "float32")
    )
    wanted, front = solve_front((exact,)), solve_front((found,))
    np.testing.assert_allclose(front.errors, wanted.errors, rtol=1e-5)
    for ours, theirs in zip(front.supports, wanted.supports, strict=True):
        assert np.array_equal(ours, theirs)
        np.testing.assert_allclose(refit(found, ours), refit(exact, theirs), rtol=1e-3, atol=1e-4)


def test_fewer_patches_than_columns_raise_the_ridge_instead_of_failing() -> None:
    geometry = linear(300, 5)
    inputs, outputs = activations(geometry, 60)
    sums = empty_folds(geometry, 1)
    update_folds(sums, inputs, outputs, geometry, 0, "float32")
    regression = regression_of(moments(finish_folds(sums, geometry)[0]), geometry)
    assert 1e-8 <= safe_ridge((regression,)) <= 1e-5


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_held_out_errors_stay_moderate_where_a_fold_leaves_fewer_patches_than_columns(name: str) -> None:
    """The whole has 100 patches for 90 columns, every training part 80."""
    generator = torch.Generator().manual_seed(3)
    geometry = linear(90, 4)
    inputs = torch.randn(100, 90, generator=generator).relu() @ torch.randn(90, 90, generator=generator)
    outputs = inputs @ torch.randn(90, 4, generator=generator) + torch.randn(100, 4, generator=generator)
    sums = empty_folds(geometry, 5)
    update_folds(sums, inputs, outputs, geometry, 0, name)
    finished = finish_folds(sums, geometry)
    front = solve_front((regression_of(moments(total(finished)), geometry),), method="elimination")
    folds = [split_moments(finished, fold) for fold in range(5)]
    training, held_out = ([(regression_of(part, geometry),) for part in side] for side in zip(*folds, strict=True))
    errors = held_out_errors(training, held_out, front, front.ridge)
    assert errors[0] == pytest.approx(1, abs=0.3)
    assert errors.max() < 5
    support = front.supports[-1]
    raw = [
        relative_error(test[0], support, refit(fold[0], support))
        for fold, test in zip(training, held_out, strict=True)
    ]
    assert max(raw) < 5  # without a ridge that suits the fold: eigenvalues in round-off are cut


def regression_of(found: Moments, geometry: LayerGeometry) -> Regression:
    return Regression(found.gram[0], found.cross[0], float(found.power[0]), geometry.taps)
