"""Statistics by shifted products equal those of explicit patches, for every geometry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels import shifts
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
    sums = shifts.empty_shifts(geometry)
    shifts.update_shifts(sums, inputs, outputs, geometry, product_dtype=dtype, block_bytes=block_bytes)
    return shifts.finish(sums, geometry).tensors()


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert set(found) == set(wanted) == set(FIELDS)
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == torch.float64, name
        error = (found[name] - value).norm() / value.norm().clamp_min(1e-30)
        assert float(error) <= tolerance, (name, float(error))


def with_method(geometry: LayerGeometry, method: str, monkeypatch: pytest.MonkeyPatch) -> GramPlan:
    """Plan the layer as if `method` were the cheaper one."""
    from streamsparse.kernels import gram_plan as module

    monkeypatch.setattr(module, "patch_cost", lambda _: 0.0 if method == "patches" else float("inf"))
    plan = module.gram_plan.__wrapped__(geometry)
    monkeypatch.setattr(shifts, "gram_plan", lambda _: plan)
    return plan


@given(geometry=geometries(), images=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=250, deadline=None)
def test_any_geometry_equals_its_patches(geometry: LayerGeometry, images: int, seed: int) -> None:
    inputs, outputs = activations(geometry, images, seed)
    wanted = expected(inputs, outputs, geometry)
    assert_close(measured(inputs, outputs, geometry, torch.float32), wanted, 1e-6)
    for method in ("shifts", "patches"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            with_method(geometry, method, monkeypatch)
            assert_close(measured(inputs, outputs, geometry, torch.float64, block_bytes=1), wanted, 1e-13)
