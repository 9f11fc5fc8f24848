"""Predicted losses: monotone whatever was measured, exact where it was, and a power law beyond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsparse.errors import StageMissingError, StatisticsError
from streamsparse.kernels.pareto import FoundBy, Front
from streamsparse.solve.fronts import GroupFront
from streamsparse.solve.losses import loss_curve, predicted_losses
from streamsparse.types import Sensitivity


def front_with(held_out: np.ndarray, name: str = "conv") -> GroupFront:
    positions = len(held_out) - 1
    supports = tuple(np.arange(count) for count in range(positions + 1))
    unasked: FoundBy = "trivial"
    front = Front(supports, held_out, (unasked,) * (positions + 1), 1e-6)
    return GroupFront(name, front, held_out, np.arange(positions + 1))


@st.composite
def measured(draw: st.DrawFn) -> tuple[np.ndarray, Sensitivity]:
    """A held-out curve with bumps, and losses with noise at some of its counts."""
    positions = draw(st.integers(1, 40))
    values = st.floats(0, 1.5, allow_subnormal=False)
    held_out = np.array(draw(st.lists(values, min_size=positions + 1, max_size=positions + 1)))
    counts = sorted(draw(st.sets(st.integers(1, max(1, positions - 1)), min_size=1, max_size=8)))
    losses = draw(st.lists(st.floats(0, 20, allow_subnormal=False), min_size=len(counts), max_size=len(counts)))
    if positions == 1:
        return held_out, Sensitivity("conv", (), ())
    return held_out, Sensitivity("conv", tuple(counts), tuple(losses))


@given(measured())
def test_losses_fall_to_zero_whatever_was_measured(case: tuple[np.ndarray, Sensitivity]) -> None:
    held_out, sensitivity = case
    losses = loss_curve(held_out, sensitivity)
    assert losses.shape == held_out.shape
    assert np.isfinite(losses).all()
    assert losses[-1] == 0
    assert (losses[:-1] >= 0).all()
    assert (np.diff(losses) <= 1e-9 * losses[:-1]).all()


@given(st.floats(0.5, 2.0), st.floats(1e-3, 1e3), st.sets(st.integers(1, 29), min_size=2, max_size=6))
def test_a_power_law_is_recovered(exponent: float, factor: float, counts: set[int]) -> None:
    held_out = np.append(np.geomspace(1, 1e-4, 30), 0.0)
    chosen = tuple(sorted(counts))
    sensitivity = Sensitivity("conv", chosen, tuple(float(factor * held_out[k] ** exponent) for k in chosen))
    least, below = held_out[chosen[-1]], np.minimum(held_out[:-1] / held_out[chosen[-1]], 1)
    expected = factor * np.maximum(held_out[:-1], least) ** exponent * below ** min(exponent, 1)
    np.testing.assert_allclose(loss_curve(held_out, sensitivity)[:-1], np.maximum(expected, 1e-12), rtol=1e-6)


def test_monotone_measurements_are_met_exactly() -> None:
    held_out = np.array([1.0, 0.5, 0.3, 0.1, 0.02, 0.004, 0.0])
    losses = loss_curve(held_out, Sensitivity("conv", (1, 3, 5), (2.0, 0.7, 0.001)))
    np.testing.assert_allclose(losses[[1, 3, 5]], [2.0, 0.7, 0.001])
    assert 0.001 < losses[4] < 0.7 < losses[2] < 2.0


def test_beyond_the_ends_the_slope_is_bounded() -> None:
    held_out = np.array([1.0, 0.1, 0.05, 0.001, 0.0])
    steep = loss_curve(held_out, Sensitivity("conv", (1, 2), (1.0, 1e-6)))
    assert steep[3] == pytest.approx(1e-6 * (0.001 / 0.05))  # small losses are proportional to the error
    assert steep[0] == pytest.approx((1.0 / 0.1) ** 2)
    flat = loss_curve(held_out, Sensitivity("conv", (1, 2), (1.0, 1.0)))
    assert flat[3] == pytest.approx((0.001 / 0.05) ** 0.5)
    one = loss_curve(held_out, Sensitivity("conv", (2,), (0.5,)))
    assert one[3] == pytest.approx(0.5 * 0.001 / 0.05)


def test_noise_against_the_order_is_averaged() -> None:
    held_out = np.array([1.0, 0.4, 0.2, 0.1, 0.05, 0.0])
    losses = loss_curve(held_out, Sensitivity("conv", (1, 2, 3, 4), (1.0, 0.01, 0.04, 0.001)))
    np.testing.assert_allclose(losses[[1, 2, 3, 4]], [1.0, 0.02, 0.02, 0.001])  # the geometric mean of the two


def test_without_sensitivities_the_held_out_errors_stand_in() -> None:
    held_out = np.array([1.0, 0.5, 0.2, 0.01])
    np.testing.assert_array_equal(predicted_losses({"conv": front_with(held_out)}, None)["conv"], held_out)


def test_some_groups_without_sensitivity_are_named() -> None:
    held_out = np.array([1.0, 0.5, 0.0])
    fronts = {name: front_with(held_out, name) for name in ("conv1", "conv2")}
    with pytest.raises(StageMissingError, match="conv2"):
        predicted_losses(fronts, {"conv1": Sensitivity("conv1", (1,), (0.3,))})
    both = {name: Sensitivity(name, (1,), (0.3,)) for name in fronts}
    assert set(predicted_losses(fronts, both)) == set(fronts)


@pytest.mark.parametrize(
    "bad",
    [
        {"counts": (), "losses": ()},
        {"counts": (1, 2), "losses": (1.0,)},
        {"counts": (2, 1), "losses": (1.0, 2.0)},
        {"counts": (0,), "losses": (1.0,)},
        {"counts": (3,), "losses": (0.0,)},
        {"counts": (1,), "losses": (float("nan"),)},
        {"counts": (1,), "losses": (-1.0,)},
    ],
)
def test_a_sensitivity_that_does_not_fit_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(StatisticsError, match="conv7"):
        loss_curve(np.array([1.0, 0.5, 0.1, 0.0]), Sensitivity("conv7", **bad))
