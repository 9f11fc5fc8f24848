"""Moments, refit and errors against the data they summarise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.errors import StatisticsError
from streamsparse.kernels.least_squares import partial_out, ridge_solution
from streamsparse.kernels.regression import (
    Regression,
    chain_errors,
    check_problem,
    columns_of,
    loss_weights,
    refit,
    relative_error,
    ridge_penalty,
    safe_ridge,
    support_error,
)
from tests.strategies import Sample, problems, random_sample, refit_objective, sample_of, samples


def residual_error(sample: Sample, support: np.ndarray, weights: np.ndarray) -> float:
    """Relative squared residual from the data rows."""
    columns = columns_of(support, sample.regression.taps)
    residual = sample.responses - sample.patches[:, columns] @ weights.T
    return float(np.square(residual).sum() / np.square(sample.responses).sum())


def some_support(positions: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.sort(random.permutation(positions)[: random.integers(1, positions + 1)])


@given(samples(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_refit_is_the_least_squares_solution_of_the_data(sample: Sample, seed: int) -> None:
    support = some_support(sample.regression.positions, seed)
    weights = refit(sample.regression, support, ridge=1e-13)
    columns = columns_of(support, sample.regression.taps)
    expected = np.linalg.lstsq(sample.patches[:, columns], sample.responses, rcond=None)[0]
    np.testing.assert_allclose(weights, expected.T, rtol=1e-6, atol=1e-7)


@given(samples(), st.integers(0, 1000), st.sampled_from([1e-6, 1e-2, 1.0]))
@settings(max_examples=60, deadline=None)
def test_a_refit_is_held_to_given_weights(sample: Sample, seed: int, ridge: float) -> None:
    """Least squares on the rows and, for every column, on one more that holds it to its weight."""
    regression, rows = sample.regression, len(sample.patches)
    support = some_support(regression.positions, seed)
    columns = columns_of(support, regression.taps)
    towards = np.random.default_rng(seed).standard_normal((regression.outputs, len(regression.gram)))
    holds = np.diag(np.sqrt(rows * ridge_penalty(regression, ridge)[columns]))
    known = np.vstack([sample.patches[:, columns], holds])
    wanted = np.vstack([sample.responses, holds @ towards[:, columns].T])
    expected = np.linalg.lstsq(known, wanted, rcond=None)[0]
    np.testing.assert_allclose(refit(regression, support, ridge, towards), expected.T, rtol=1e-6, atol=1e-7)


def test_what_few_rows_cannot_tell_stays_as_it_was() -> None:
    random = np.random.default_rng(0)
    patches, weights = random.standard_normal((5, 12)), random.standard_normal((3, 12))
    regression = sample_of(patches, patches @ weights.T, taps=2).regression
    np.testing.assert_allclose(refit(regression, np.arange(6), 1e-8, weights), weights, atol=1e-6)
    assert np.abs(refit(regression, np.arange(6), 1e-8) - weights).max() > 0.1


@given(samples(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_relative_error_is_that_of_the_data(sample: Sample, seed: int) -> None:
    random = np.random.default_rng(seed)
    support = some_support(sample.regression.positions, seed)
    weights = random.standard_normal((sample.regression.outputs, len(support) * sample.regression.taps))
    expected = residual_error(sample, support, weights)
    assert relative_error(sample.regression, support, weights) == pytest.approx(expected, rel=1e-9)


def test_relative_error_of_a_held_out_fold_about_the_training_means() -> None:
    random = np.random.default_rng(0)
    patches, responses = random.standard_normal((50, 4)) + 3, random.standard_normal((50, 2)) - 1
    training = sample_of(patches[:30], responses[:30], taps=2)
    support = np.array([1])
    weights = refit(training.regression, support)
    x = patches[30:] - patches[:30].mean(axis=0)
    y = responses[30:] - responses[:30].mean(axis=0)
    fold = Regression(x.T @ x / 20, x.T @ y / 20, float(np.square(y).sum()) / 20, taps=2)
    expected = np.square(y - x[:, 2:] @ weights.T).sum() / np.square(y).sum()
    assert relative_error(fold, support, weights) == pytest.approx(float(expected), rel=1e-12)


@given(problems(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_support_error_is_the_refits_objective(problem: tuple[Regression, ...], seed: int) -> None:
    support = some_support(problem[0].positions, seed)
    ridge = safe_ridge(problem)
    objectives = [refit_objective(each, support, ridge) for each in problem if each.power > 0]
    expected = np.mean(objectives) if objectives else 0.0
    assert support_error(problem, support, ridge) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@given(problems(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_chain_errors_are_those_of_each_prefix_and_never_rise(problem: tuple[Regression, ...], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(problem[0].positions))
    random.shuffle(order)
    ridge = safe_ridge(problem)
    errors = chain_errors(problem, np.array(order), ridge)
    assert (np.diff(errors) <= 1e-12).all()
    for count in range(len(order) + 1):
        prefix = np.array(order[:count], dtype=np.int64)
        assert errors[count] == pytest.approx(support_error(problem, prefix, ridge), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_units_of_a_channel_change_nothing(scale: float) -> None:
    sample = random_sample(3, positions=6, taps=2)
    factors = np.repeat([1.0, scale, 1.0, 1.0 / scale, 1.0, scale], 2)
    scaled = sample_of(sample.patches * factors, sample.responses * scale, taps=2).regression
    support = np.array([0, 1, 3, 5])
    weights = refit(sample.regression, support)
    rescaled = refit(scaled, support) * factors[columns_of(support, 2)] / scale
    np.testing.assert_allclose(rescaled, weights, rtol=1e-7, atol=1e-9)
    assert support_error((scaled,), support) == pytest.approx(
        support_error((sample.regression,), support), rel=1e-7
    )


def test_dead_and_duplicate_channels_are_refitted_to_the_same_predictions() -> None:
    sample = random_sample(1, positions=4, taps=2, noise=0.5)
    patches = sample.patches.copy()
    patches[:, 4:6] = patches[:, 0:2]
    patches[:, 6:8] = 0
    flawed = sample_of(patches, sample.responses, taps=2)
    lean, full = np.array([0, 1]), np.arange(4)
    expected = patches[:, :4] @ refit(flawed.regression, lean).T
    np.testing.assert_allclose(patches @ refit(flawed.regression, full).T, expected, atol=1e-6)
    assert np.abs(refit(flawed.regression, full)[:, 6:]).max() == 0


def test_a_singular_system_gets_the_solution_of_least_norm() -> None:
    random = np.random.default_rng(5)
    rows = random.standard_normal((3, 6))
    targets = random.standard_normal((3, 2))
    solution = ridge_solution(rows.T @ rows, rows.T @ targets, 0.0)
    np.testing.assert_allclose(rows @ solution, targets, atol=1e-8)
    assert np.isfinite(solution).all()


def test_what_is_left_beside_the_context_never_contradicts_itself() -> None:
    """Responses that the context explains but for round-off: what is left of the cross moments is noise."""
    random = np.random.default_rng(0)
    for _ in range(50):
        x = random.standard_normal((40, 6))
        x[:, 1] = x[:, 4] + 6e-3 * x[:, 1]
        y = x[:, 4:] @ random.standard_normal((2, 3)) + 2e-2 * random.standard_normal((40, 3))
        gram, cross = ((x.T @ other / len(x)).astype(np.float32).astype(np.float64) for other in (x, y))
        noise = 2e-4 * random.standard_normal(cross.shape)
        left = partial_out(gram, cross + noise, float(np.square(y).sum() / len(y)), np.array([4, 5]))
        Regression(*left, taps=1)


def test_partial_out_leaves_the_errors_of_the_whole_regression() -> None:
    sample = random_sample(7, positions=6, noise=0.5)
    moments = sample.regression
    kept = np.array([1, 4])
    gram, cross, power = partial_out(moments.gram, moments.cross, moments.power, kept)
    rest = Regression(gram, cross, power, taps=1)
    chosen = np.array([0, 2])  # columns 0 and 3 of the whole
    error = support_error((rest,), chosen) * power
    whole = support_error((moments,), np.array([0, 1, 3, 4])) * moments.power
    assert error == pytest.approx(whole, rel=1e-6)
    assert power == pytest.approx(support_error((moments,), kept) * moments.power, rel=1e-6)


def test_of_what_the_context_explains_nothing_remains_in_single_precision() -> None:
    sample = random_sample(8, positions=6, noise=0.5)
    patches = sample.patches.copy()
    patches[:, 2] = patches[:, 1] - 2 * patches[:, 4]
    whole = sample_of(patches, sample.responses, taps=1).regression
    noise = 1e-6 * np.random.default_rng(0).standard_normal((6, 6))
    coarse = whole.gram * (1 + noise + noise.T)
    gram, cross, power = partial_out(coarse, whole.cross, whole.power, np.array([1, 4]))
    rest = Regression(gram, cross, power, taps=1)  # columns 0, 2, 3, 5 of the whole
    assert not gram[1].any()
    assert not gram[:, 1].any()
    assert not cross[1].any()
    assert safe_ridge((rest,)) == 1e-8
    error = support_error((rest,), np.array([0, 2, 3])) * power
    assert error == pytest.approx(support_error((whole,), np.array([0, 1, 3, 4, 5])) * whole.power, rel=1e-4)


def test_responses_that_the_context_explains_leave_no_power() -> None:
    sample = random_sample(9, positions=5)
    responses = sample.patches[:, [1, 3]] @ np.array([[1.0, -2.0], [0.5, 3.0]])
    whole = sample_of(sample.patches, responses, taps=1).regression
    gram, cross, power = partial_out(whole.gram, whole.cross, whole.power * (1 + 1e-6), np.array([1, 3]))
    assert power == 0
    assert not cross.any()
    assert support_error((Regression(gram, cross, power, taps=1),), np.array([], dtype=np.int64)) == 0


def test_nothing_kept_has_error_one_and_constant_responses_none() -> None:
    regression = random_sample(0, positions=3).regression
    nothing = np.array([], dtype=np.int64)
    constant = Regression(regression.gram, np.zeros_like(regression.cross), 0.0, taps=1)
    assert support_error((regression,), nothing) == 1
    assert relative_error(regression, nothing, refit(regression, nothing)) == 1
    assert relative_error(constant, nothing, refit(constant, nothing)) == 0
    assert support_error((constant,), nothing) == 0
    assert loss_weights((regression, constant)) == (1 / regression.power, 0.0)
    assert not refit(constant, np.arange(3)).any()


def test_statistics_in_float32_raise_the_ridge_instead_of_failing() -> None:
    sample = random_sample(2, positions=10, patches=8, correlation=1.0)
    gram = sample.regression.gram.astype(np.float32)
    coarse = Regression(gram, sample.regression.cross.astype(np.float32), sample.regression.power, taps=1)
    ridge = safe_ridge((coarse,))
    assert 1e-8 <= ridge <= 1e-4
    assert np.isfinite(chain_errors((coarse,), np.arange(10), ridge)).all()
    assert coarse.gram.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": np.eye(3)[:2]}, "do not fit"),
        ({"cross": np.ones((4, 1))}, "do not fit"),
        ({"cross": np.ones((3, 0))}, "do not fit"),
        ({"taps": 2}, "do not divide"),
        ({"taps": 0}, "do not divide"),
        ({"gram": np.full((3, 3), np.nan)}, "NaN"),
        ({"power": np.inf}, "NaN"),
        ({"gram": np.triu(np.ones((3, 3)))}, "not that of real data"),
        ({"gram": -np.eye(3)}, "not that of real data"),
        ({"power": -1.0}, "negative"),
        ({"cross": np.full((3, 1), 100.0)}, "contradict"),
    ],
)
def test_impossible_moments_are_refused(change: dict[str, object], message: str) -> None:
    valid: dict[str, object] = {"gram": np.eye(3), "cross": np.full((3, 1), 0.1), "power": 1.0, "taps": 1}
    Regression(**valid)  # type: ignore[arg-type]
    with pytest.raises(StatisticsError, match=message):
        Regression(**(valid | change))  # type: ignore[arg-type]


def test_an_indefinite_gram_and_unequal_positions_are_refused() -> None:
    indefinite = np.array([[1.0, 5.0], [5.0, 1.0]])
    with pytest.raises(StatisticsError, match="positive semidefinite"):
        safe_ridge((Regression(indefinite, np.zeros((2, 1)), 1.0, taps=1),))
    three, four = random_sample(0, positions=3).regression, random_sample(0, positions=4).regression
    with pytest.raises(StatisticsError, match="same positions"):
        check_problem((three, four))
    with pytest.raises(StatisticsError, match="same positions"):
        check_problem(())
