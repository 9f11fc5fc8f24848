"""W-step, w-step and their alternation against the data, normal equations and brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import lstsq

from streamsparse.errors import UsageError
from streamsparse.kernels.entropic import (
    alternate,
    channel_quadratic,
    channel_step,
    entropy,
    loss,
    reduced_loss,
    weight_step,
)
from streamsparse.kernels.entropic_path import entropic_path
from streamsparse.kernels.regression import Regression, loss_weights
from tests.strategies import Sample, problems, random_sample, sample_of, samples

hyperparameters = st.tuples(st.sampled_from([1e-8, 1e-5, 1e-3, 0.1]), st.sampled_from([0.0, 1e-4, 1e-2, 0.3]))


def random_weights(positions: int, seed: int, zeros: int = 0) -> np.ndarray:
    w = np.random.default_rng(seed).dirichlet(np.ones(positions))
    w[: min(zeros, positions - 1)] = 0
    normalised: np.ndarray = w / w.sum()
    return normalised


@given(samples(), st.integers(0, 1000), st.sampled_from([1e-6, 1e-3, 0.1]), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_weight_step_is_ridge_regression_of_augmented_rows(
    sample: Sample, seed: int, eps_l2: float, zeros: int
) -> None:
    regression = sample.regression
    w = random_weights(regression.positions, seed, zeros)
    scale = np.repeat(w, regression.taps)
    rows = sample.patches * scale / np.sqrt(len(sample.patches))
    ridge_rows = np.sqrt(eps_l2 * regression.gram.diagonal().mean()) * np.eye(len(scale))
    targets = np.vstack(
        [sample.responses / np.sqrt(len(sample.patches)), np.zeros((len(scale), regression.outputs))]
    )
    expected = lstsq(np.vstack([rows, ridge_rows]), targets)[0].T
    (lambdas,) = weight_step((regression,), w, eps_l2)
    np.testing.assert_allclose(lambdas, expected, rtol=1e-6, atol=1e-8)
    assert not lambdas[:, scale == 0].any()


@given(samples(), st.integers(0, 1000), hyperparameters)
@settings(max_examples=40, deadline=None)
def test_loss_is_that_of_the_data(sample: Sample, seed: int, epsilons: tuple[float, float]) -> None:
    regression, (eps_l2, eps_h) = sample.regression, epsilons
    w = random_weights(regression.positions, seed, zeros=1)
    lambdas = np.random.default_rng(seed).standard_normal((regression.outputs, len(regression.gram)))
    residual = sample.responses - (sample.patches * np.repeat(w, regression.taps)) @ lambdas.T
    power = np.square(sample.responses).sum() / len(residual)
    expected = np.square(residual).sum() / len(residual) / power
    expected += eps_l2 * regression.gram.diagonal().mean() / power * np.square(lambdas).sum()
    expected -= eps_h * sum(value * np.log(value) for value in w if value > 0)
    assert loss((regression,), w, (lambdas,), eps_l2, eps_h) == pytest.approx(float(expected), rel=1e-9)


@given(problems(), st.integers(0, 1000), hyperparameters)
@settings(max_examples=40, deadline=None)
def test_reduced_loss_and_quadratic_agree_with_the_loss(
    problem: tuple[Regression, ...], seed: int, epsilons: tuple[float, float]
) -> None:
    eps_l2, eps_h = epsilons
    w = random_weights(problem[0].positions, seed)
    lambdas = weight_step(problem, w, eps_l2)
    exact = loss(problem, w, lambdas, eps_l2, eps_h)
    assert reduced_loss(problem, w, lambdas, eps_h) == pytest.approx(exact, rel=1e-6, abs=1e-7)
    other = random_weights(problem[0].positions, seed + 1)
    quadratic = channel_quadratic(problem, lambdas, np.arange(len(w)))
    change = quadratic.value(other) - quadratic.value(w) + eps_h * (entropy(other) - entropy(w))
    expected = loss(problem, other, lambdas, eps_l2, eps_h) - exact
    assert change == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 0.05]))
@settings(max_examples=25, deadline=None)
def test_channel_step_against_a_grid_on_three_channels(seed: int, eps_h: float) -> None:
    """The convex part is solved exactly; with entropy the step must be a minimum along every direction."""
    problem = (random_sample(seed, positions=3, taps=2, noise=1.0).regression,)
    lambdas = weight_step(problem, np.full(3, 1 / 3), 0.1)
    w = channel_step(problem, random_weights(3, seed), lambdas, eps_h)
    here = loss(problem, w, lambdas, 0.1, eps_h)
    steps = np.linspace(0, 1, 41)
    grid = np.array([(a, b, max(0.0, 1 - a - b)) for a in steps for b in steps if a + b <= 1 + 1e-12])
    # With concave entropy a local minimum is all that is asked: compare with grid points on w's face and near w.
    near = np.abs(grid - w).max(axis=1) <= (2 if eps_h == 0 else 0.05)
    on_face = (grid[:, w == 0] == 0).all(axis=1)
    for point in grid[near & (on_face | (eps_h == 0))]:
        assert loss(problem, point, lambdas, 0.1, eps_h) >= here - 1e-4 * (eps_h > 0) - 1e-10


@pytest.mark.parametrize("accelerate", [False, True])
@given(problem=problems(), epsilons=hyperparameters, seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_loss_never_rises_and_dropped_channels_stay_out(
    accelerate: bool, problem: tuple[Regression, ...], epsilons: tuple[float, float], seed: int
) -> None:
    eps_l2, eps_h = epsilons
    seen: list[np.ndarray] = []
    start = random_weights(problem[0].positions, seed, zeros=seed % 3)
    result = alternate(
        problem,
        eps_l2=eps_l2,
        eps_h=eps_h,
        start=start,
        max_iterations=25,
        accelerate=accelerate,
        on_iteration=lambda _number, _loss, w: seen.append(w),
    )
    losses = np.array(result.losses)
    assert (np.diff(losses) <= 1e-10 * np.maximum(np.abs(losses[:-1]), 1e-3)).all()
    assert result.w.sum() == pytest.approx(1, abs=1e-12)
    assert len(seen) == result.iterations == len(losses) - 1
    for before, after in zip([start, *seen], seen, strict=False):
        assert not after[before == 0].any()
    final = loss(problem, result.w, result.lambdas, eps_l2, eps_h)
    assert final == pytest.approx(losses[-1], rel=1e-6, abs=1e-7)


def test_entropy_and_ridge_both_sparsify() -> None:
    problem = (random_sample(2, positions=12, taps=2, noise=0.3).regression,)

    def kept(eps_l2: float, eps_h: float) -> int:
        return len(alternate(problem, eps_l2=eps_l2, eps_h=eps_h).support)

    assert kept(1e-9, 0.0) > kept(1e-3, 0.0) > kept(0.1, 0.0)
    assert kept(1e-6, 0.1) < kept(1e-6, 0.0)


def test_units_of_inputs_and_responses_do_not_matter() -> None:
    sample = random_sample(6, positions=8, taps=2, noise=0.3)
    scaled = sample_of(sample.patches * 1e6, sample.responses * 1e-6, taps=2)
    plain = alternate((sample.regression,), eps_l2=1e-4, eps_h=1e-3)
    other = alternate((scaled.regression,), eps_l2=1e-4, eps_h=1e-3)
    np.testing.assert_allclose(other.losses, plain.losses, rtol=1e-7)
    np.testing.assert_allclose(other.w, plain.w, atol=1e-6)


def test_degenerate_problems() -> None:
    regression = random_sample(0, positions=3).regression
    constant = Regression(regression.gram, np.zeros_like(regression.cross), 0.0, taps=1)
    flat = alternate((constant,), eps_l2=1e-3, eps_h=0.0)
    np.testing.assert_allclose(flat.w, 1 / 3)
    assert flat.converged
    single = alternate((random_sample(0, positions=1).regression,), eps_l2=1e-3, eps_h=0.1)
    np.testing.assert_array_equal(single.w, [1])
    assert loss_weights((regression, constant))[1] == 0
    joint = alternate((regression, constant), eps_l2=1e-3, eps_h=1e-3)
    alone = alternate((regression,), eps_l2=1e-3, eps_h=1e-3)
    np.testing.assert_allclose(joint.w, alone.w)


def test_a_gram_in_float32_is_solved() -> None:
    sample = random_sample(2, positions=10, patches=8, correlation=1.0)
    coarse = Regression(
        sample.regression.gram.astype(np.float32),
        sample.regression.cross.astype(np.float32),
        sample.regression.power,
        taps=1,
    )
    result = alternate((coarse,), eps_l2=1e-12, eps_h=0.0, max_iterations=5)
    assert np.isfinite(result.losses).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps_l2": 0.0}, "out of range"),
        ({"eps_h": -1.0}, "out of range"),
        ({"eps_l2": float("nan")}, "out of range"),
        ({"start": np.ones(3)}, "probability vector"),
        ({"start": np.ones(2) / 2}, "probability vector"),
        ({"start": np.array([1.5, -0.5, 0.0])}, "probability vector"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    problem = (random_sample(0, positions=3).regression,)
    with pytest.raises(UsageError, match=message):
        alternate(problem, **({"eps_l2": 1e-3, "eps_h": 0.0} | change))  # type: ignore[arg-type]


def test_the_path_visits_nested_supports_down_to_one_channel() -> None:
    problem = (random_sample(5, positions=20, taps=2, noise=0.3).regression,)
    told: list[object] = []
    points = entropic_path(problem, on_point=told.append)
    assert points == told
    trunk = [point for point in points if point.eps_h == 0]
    assert len(trunk[-1].support) == 1
    assert len({len(point.support) for point in points}) >= 12
    for before, after in pairwise(trunk):
        assert set(after.support) <= set(before.support)
    for point in points:
        np.testing.assert_array_equal(np.sort(point.ranking), np.arange(20))
        np.testing.assert_array_equal(np.sort(point.ranking[: len(point.support)]), point.support)
