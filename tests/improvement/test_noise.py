"""Scales and fitted curves where looks tell little: flat predictions, unequal errors, gains within the noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsparse.improvement.noise import Change, fitted_curves, scales_of
from streamsparse.solve.losses import loss_curve
from streamsparse.types import Sensitivity

OWN = (0.2, 0.5, 1.0, 3.0, 4.0, 0.1)
EXPECTED = (0.01, -0.02, 0.03, -0.01, 0.02, 0.03)


def looks(own: Sequence[float], errors: Sequence[float], expected: Sequence[float]) -> list[Change]:
    """Measured changes that say these scales, give or take these errors."""
    return [Change(s * p, e * abs(p)) for s, e, p in zip(own, errors, expected, strict=True)]


@pytest.mark.parametrize("flat", [0.0, 1e-12, -1e-9, 3e-8, 1e-7, 1e-6])
@pytest.mark.parametrize("change", [2e-3, -2e-3, 0.0])
def test_a_look_where_nothing_is_expected_leaves_the_others_alone(flat: float, change: float) -> None:
    """Its scale is the common one: of scales that differ so much, about their mean."""
    changes = [*looks(OWN, [0.01] * 6, EXPECTED), Change(change, 1e-3)]
    *others, last = scales_of(changes, [*EXPECTED, flat])
    np.testing.assert_allclose(others, OWN, rtol=2e-3)
    assert last == pytest.approx(np.mean(OWN), rel=1e-2)
    assert np.isfinite(scales_of(changes[-1:], [flat])).all()


def test_nothing_expected_anywhere_leaves_curves_as_they_are() -> None:
    assert scales_of([Change(0.1, 0.01), Change(-0.1, 0.0)], [0.0, 0.0]) == [1.0, 1.0]


def test_one_certain_look_is_not_the_common_scale() -> None:
    """The others are around 3, and so is what nothing is known of: in the mean of scales that are spread by τ."""
    own, errors = (0.1, 2.0, 3.0, 2.5, 3.5, 5.0), (1e-3, 0.5, 0.5, 0.5, 0.5, 5.0)
    found = scales_of(looks(own, errors, [1.0] * 6), [1.0] * 6)
    assert found[0] == pytest.approx(0.1, abs=1e-3)
    assert 2.0 < found[-1] < 3.0
    mean = np.mean(own[:-1])  # of those that are much more certain than they are spread
    assert all(abs(f - mean) < abs(s - mean) + 0.05 for s, f in zip(own, found, strict=True))


def test_scales_are_nearly_as_good_as_with_their_mean_and_spread_known() -> None:
    """With errors of 1/300 to three times the spread; weighing by the errors alone gives 1.69 times their loss."""
    generator = np.random.default_rng(0)
    truth = generator.normal(3.0, 1.0, (500, 8))
    errors = 10 ** generator.uniform(-2.5, 0.5, (500, 8))
    seen = truth + errors * generator.standard_normal((500, 8))
    found = np.array([
        scales_of(looks(s, e, [1.0] * 8), [1.0] * 8) for s, e in zip(seen.tolist(), errors.tolist(), strict=True)
    ])  # fmt: skip
    known = (seen + 3.0 * errors**2) / (1 + errors**2)
    assert ((found - truth) ** 2).mean() < 1.5 * ((known - truth) ** 2).mean()


def flat_curve() -> np.ndarray:
    """Predicted of 40 channels: sensitivities out of order are pooled, so that 20 and 30 are alike."""
    held_out = np.append(np.geomspace(1.0, 1e-3, 40), 0.0)
    return loss_curve(held_out, Sensitivity("a", (20, 30), (0.02, 0.021)))


def test_a_measured_gain_shows_where_the_prediction_is_flat() -> None:
    predicted, count, error = flat_curve(), 20, 0.001
    assert predicted[26] == pytest.approx(predicted[20], rel=1e-9)
    fitted = fitted_curves({"a": predicted}, {"a": count}, {("a", 26): Change(-0.05, error)})["a"]
    gain = 0.05 * (1 - (error / 0.05) ** 2)
    np.testing.assert_allclose(fitted[20] - fitted[20:27], gain * np.arange(7) / 6, atol=1e-9)
    assert (np.diff(fitted[20:]) <= 0).all()
    below = fitted_curves({"a": predicted}, {"a": 28}, {("a", 22): Change(0.05, error)})["a"]
    np.testing.assert_allclose(below[22:29] - below[28], gain * np.arange(6, -1, -1) / 6, atol=1e-9)
    assert (np.diff(below[:29]) <= 1e-12).all()


@pytest.mark.parametrize(("mean", "error"), [(-0.05, 0.06), (0.05, 0.001), (-0.05, np.inf), (0.0, 0.0), (0.0, 0.1)])
def test_what_is_noise_or_no_gain_leaves_a_flat_prediction_flat(mean: float, error: float) -> None:
    predicted = flat_curve()
    fitted = fitted_curves({"a": predicted}, {"a": 20}, {("a", 26): Change(mean, error)})["a"]
    np.testing.assert_allclose(fitted[20:27], fitted[20], atol=1e-9)


@given(st.data())
def test_fitted_curves_are_finite_and_do_not_rise(data: st.DataObject) -> None:
    """Whatever is measured: their least is 0, at flat predictions as at others."""
    steps = st.sampled_from([0.0, 0.0, 1e-12, 1e-6, 0.1, 3.0])
    numbers = st.one_of(st.sampled_from([0.0, 1e-300]), st.floats(-10, 10))
    curves, counts, changes = {}, {}, {}
    for name in "ab":
        falls = data.draw(st.lists(steps, min_size=3, max_size=8))
        curves[name] = np.append(np.cumsum(falls)[::-1], 0.0)
        count = counts[name] = data.draw(st.integers(1, len(falls)))
        for side in (range(1, count), range(count + 1, len(falls) + 1)):
            if side:
                look = data.draw(st.sampled_from(side))
                changes[name, look] = Change(data.draw(numbers), abs(data.draw(numbers)))
    for curve in fitted_curves(curves, counts, changes).values():
        assert np.isfinite(curve).all()
        assert (np.diff(curve) <= 1e-9 * (1 + curve[0])).all()
        assert curve.min() == 0
