"""Statistics by shifted products equal those of explicit patches, for every geometry."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels import shift_sums, shifts
from streamsparse.kernels.gram_plan import GramPlan, gram_plan
from streamsparse.kernels.patches import patches, responses
from streamsparse.kernels.statistics import FIELDS
from streamsparse.types import LayerGeometry


def convolution(
    channels: tuple[int, int], size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...], dilation: tuple[int, ...], groups: int = 1, mode: str = "zeros",
) -> LayerGeometry:  # fmt: skip
    """Geometry of a convolution; None of its outputs may vanish."""
    outputs = tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    )
    kind = f"conv{len(size)}d"
    return LayerGeometry(
        "layer", kind, channels[0], channels[1], kernel, stride, padding, dilation, groups, mode, True,
        (channels[0], *size), (channels[1], *outputs),
    )  # fmt: skip


def linear(features: int, outputs: int, leading: tuple[int, ...] = ()) -> LayerGeometry:
    return LayerGeometry(
        "layer", "linear", features, outputs, (), (), (), (), 1, "zeros", True, (*leading, features),
        (*leading, outputs),
    )  # fmt: skip


@st.composite
def geometries(draw: st.DrawFn) -> LayerGeometry:
    """Convolutions of one and two dimensions, kernels 1 to 7, any padding, stride, dilation and grouping."""
    dimensions = draw(st.sampled_from((1, 2, 2, 2)))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dimensions))

    size, kernel, stride, dilation = sizes(1, 11), sizes(1, 7), sizes(1, 3), sizes(1, 2)
    mode = draw(st.sampled_from(("zeros", "zeros", "zeros", "reflect", "replicate", "circular")))
    largest = [{"zeros": 4, "reflect": n - 1, "circular": n}.get(mode, 3) for n in size]
    padding = tuple((draw(st.integers(0, most)), draw(st.integers(0, most))) for most in largest)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    channels = (groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)))
    for n, p, d, k in zip(size, padding, dilation, kernel, strict=True):
        assume(n + sum(p) > d * (k - 1))
    return convolution(channels, size, kernel, stride, padding, dilation, groups, mode)


def activations(geometry: LayerGeometry, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rectified noise as inputs, shifted noise as outputs, float32."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(images, *geometry.input_shape, generator=generator).relu()
    return inputs, torch.randn(images, *geometry.output_shape, generator=generator) + 0.3


def expected(inputs: Tensor, outputs: Tensor, geometry: LayerGeometry) -> dict[str, Tensor]:
    """The definition, from float64 patches."""
    rows, targets = patches(inputs.double(), geometry), responses(outputs.double(), geometry)
    return {
        "gram": rows.transpose(1, 2) @ rows,
        "cross": rows.transpose(1, 2) @ targets,
        "sum_x": rows.sum(1),
        "sum_y": targets.sum(1),
        "power": targets.square().sum((1, 2)),
        "count": torch.tensor([rows.shape[1]], dtype=torch.float64),
    }


def measured(
    inputs: Tensor, outputs: Tensor, geometry: LayerGeometry, dtype: torch.dtype, block_bytes: int = 2**20
) -> dict[str, Tensor]:
    sums = shift_sums.empty_shifts(geometry)
    shifts.update_shifts(sums, inputs, outputs, geometry, product_dtype=dtype, block_bytes=block_bytes)
    return shift_sums.finish(sums, geometry).tensors()


def assert_close(
    found: dict[str, Tensor], inputs: Tensor, outputs: Tensor, geometry: LayerGeometry, tolerance: float
) -> None:
    """Norm-wise; a signed sum may cancel, so errors are relative to the sum of absolute values."""
    wanted = expected(inputs, outputs, geometry)
    sizes = expected(inputs.abs(), outputs.abs(), geometry)
    assert set(found) == set(wanted) == set(FIELDS)
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == torch.float64, name
        error = (found[name] - value).norm() / sizes[name].norm().clamp_min(1e-30)
        assert float(error) <= tolerance, (name, float(error))


def with_method(geometry: LayerGeometry, method: str, monkeypatch: pytest.MonkeyPatch) -> GramPlan:
    """Plan the layer as if `method` were the cheaper one."""
    from streamsparse.kernels import gram_plan as module

    monkeypatch.setattr(module, "patch_cost", lambda _: 0.0 if method == "patches" else float("inf"))
    plan = module.gram_plan.__wrapped__(geometry)
    monkeypatch.setattr(shifts, "gram_plan", lambda _: plan)
    monkeypatch.setattr(shift_sums, "gram_plan", lambda _: plan)
    return plan


@given(geometry=geometries(), images=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=250, deadline=None)
def test_any_geometry_equals_its_patches(geometry: LayerGeometry, images: int, seed: int) -> None:
    inputs, outputs = activations(geometry, images, seed)
    assert_close(measured(inputs, outputs, geometry, torch.float32), inputs, outputs, geometry, 1e-6)
    for method in ("shifts", "patches"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            with_method(geometry, method, monkeypatch)
            found = measured(inputs, outputs, geometry, torch.float64, block_bytes=1)
            assert_close(found, inputs, outputs, geometry, 1e-13)


@pytest.mark.parametrize(
    "geometry",
    [
        convolution((64, 96), (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        convolution((160, 64), (6, 6), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),  # symmetric in blocks
        convolution((128, 64), (16, 16), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups=2),
        convolution((48, 48), (16, 16), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), groups=48),
        convolution((128, 16), (40,), (5,), (2,), ((2, 1),), (3,)),
        linear(200, 10),
        linear(130, 7, leading=(5,)),
        linear(12, 7, leading=(3, 4)),
    ],
    ids=("3x3", "1x1", "grouped", "depthwise", "1d", "linear", "tokens", "token-grid"),
)
def test_wide_layers_in_single_precision(geometry: LayerGeometry) -> None:
    inputs, outputs = activations(geometry, 24)
    found = measured(inputs, outputs, geometry, torch.float32, block_bytes=2**22)
    assert_close(found, inputs, outputs, geometry, 1e-6)


def test_half_precision_activations_are_widened() -> None:
    geometry = convolution((4, 5), (9, 9), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    inputs, outputs = (values.half() for values in activations(geometry, 6))
    found = measured(inputs, outputs, geometry, torch.float32)
    assert_close(found, inputs.float(), outputs.float(), geometry, 1e-6)


@given(geometry=geometries(), seed=st.integers(0, 99), cut=st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_folds_merge_to_the_whole(geometry: LayerGeometry, seed: int, cut: int) -> None:
    inputs, outputs = activations(geometry, 6, seed)
    parts = [shift_sums.empty_shifts(geometry) for _ in range(3)]
    shifts.update_shifts(parts[0], inputs[:cut:2], outputs[:cut:2], geometry, product_dtype=torch.float64)
    shifts.update_shifts(parts[1], inputs[1:cut:2], outputs[1:cut:2], geometry, product_dtype=torch.float64)
    shifts.update_shifts(parts[2], inputs[cut:], outputs[cut:], geometry, product_dtype=torch.float64)
    whole = shift_sums.merge_shifts(parts[2], shift_sums.merge_shifts(parts[1], parts[0]))
    assert_close(shift_sums.finish(whole, geometry).tensors(), inputs, outputs, geometry, 1e-12)


@given(geometry=geometries(), bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_own_responses_need_no_outputs(geometry: LayerGeometry, bias: bool) -> None:
    inputs, _ = activations(geometry, 4)
    generator = torch.Generator().manual_seed(1)
    shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    offset = torch.randn(geometry.out_channels, generator=generator, dtype=torch.float64) if bias else None
    rows = patches(inputs.double(), geometry)  # (groups, rows, columns)
    targets = rows @ weight.reshape(geometry.groups, -1, geometry.columns).transpose(1, 2)
    if offset is not None:
        targets = targets + offset.view(geometry.groups, 1, -1)
    sums = shift_sums.empty_shifts(geometry)
    shifts.update_shifts(sums, inputs, None, geometry, product_dtype=torch.float64)
    found = shift_sums.own_responses(shift_sums.finish(sums, geometry), weight, offset)
    torch.testing.assert_close(found.cross, rows.transpose(1, 2) @ targets, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.sum_y, targets.sum(1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.power, targets.square().sum((1, 2)), rtol=1e-11, atol=1e-11)
    assert float(found.count) == rows.shape[1]


def test_padded_3x3_needs_29_products_and_13_large_ones() -> None:
    plan = gram_plan(convolution((64, 64), (32, 32), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)))
    assert plan.method == "shifts"
    assert len(plan.terms.terms) == 29
    assert sum(term.area >= 30 * 30 for term in plan.terms.terms) == 13
    assert len(plan.terms.sums) == 45  # every tap pair of one triangle


def test_few_channels_take_the_patch_path() -> None:
    assert gram_plan(convolution((1, 6), (28, 28), (5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1))).method == "patches"


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(side: str, value: float) -> None:
    geometry = convolution((4, 5), (9, 9), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    inputs, outputs = activations(geometry, 3)
    (inputs if side == "inputs" else outputs)[1, 2, 4, 4] = value
    with pytest.raises(NonFiniteError, match="layer"):
        shifts.update_shifts(shift_sums.empty_shifts(geometry), inputs, outputs, geometry)


def test_shapes_that_do_not_fit_are_refused() -> None:
    geometry = convolution((4, 5), (9, 9), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    inputs, outputs = activations(geometry, 3)
    sums = shift_sums.empty_shifts(geometry)
    for wrong in ((inputs[:, :3], outputs), (inputs, outputs[:, :, 1:]), (inputs[:2], outputs)):
        with pytest.raises(StatisticsError) as caught:
            shifts.update_shifts(sums, *wrong, geometry)
        assert caught.value.expected is not None
        assert caught.value.got is not None
    with pytest.raises(StatisticsError):
        shift_sums.merge_shifts(sums, shift_sums.empty_shifts(replace(geometry, out_channels=6)))


@pytest.mark.parametrize("name", ["float16", "double", torch.float16])
def test_other_precisions_are_refused(name: str | torch.dtype) -> None:
    geometry = linear(6, 2)
    inputs, outputs = activations(geometry, 3)
    with pytest.raises(StatisticsError, match="precision"):
        shifts.update_shifts(shift_sums.empty_shifts(geometry), inputs, outputs, geometry, product_dtype=name)


MEMORY_SCRIPT = """
import sys
from pathlib import Path
import torch
from streamsparse.kernels.shift_sums import empty_shifts
from streamsparse.kernels.shifts import update_shifts
from tests.kernels.test_shifts import convolution

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

channels, size, stride, images, block, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
ones = (1, 1)
geometry = convolution((channels, channels), (size, size), (3, 3), (stride, stride), (ones, ones), ones)
inputs, outputs = (torch.ones(images, *shape) for shape in (geometry.input_shape, geometry.output_shape))
update_shifts(empty_shifts(geometry), inputs[:4], outputs[:4], geometry, block_bytes=1)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
sums = empty_shifts(geometry)
update_shifts(sums, inputs, outputs, geometry, block_bytes=block)
state = sum(values.numel() * 8 for values in sums.tensors().values())
print(status("VmHWM") - before, state)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is reset through Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "size", "stride", "images"), [(64, 32, 1, 160), (128, 28, 2, 48)])
def test_peak_memory_is_the_state_and_one_block(
    channels: int, size: int, stride: int, images: int, threads: int
) -> None:
    block = 16 * 2**20
    command = [sys.executable, "-c", MEMORY_SCRIPT, *map(str, (channels, size, stride, images, block, threads))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    extra, state = map(int, done.stdout.split())
    allocator = 4 * 2**20  # pages that the C library keeps, code touched for the first time
    waiting = 0 if threads == 1 else threads * state // 2  # a float32 product of every thread, to be added in turn
    assert extra <= state + block + waiting + allocator
    assert images * channels * size * size * 4 > block  # the batch itself is larger than a block
