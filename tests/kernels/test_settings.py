"""Many settings of both hyperparameters from warm starts."""

from __future__ import annotations

import numpy as np
import pytest

from streamsparse.errors import UsageError
from streamsparse.kernels.entropic import alternate
from streamsparse.kernels.settings import grid_settings, random_settings, solve_settings
from streamsparse.kernels.single_precision import Precisions, SingleRegression, in_single_precision
from tests.strategies import random_sample

PROBLEM = (random_sample(5, positions=16, taps=2, noise=0.3).regression,)


def test_grids_and_random_settings_have_their_number_and_range() -> None:
    for number in (1, 2, 10, 100, 1000):
        grid = grid_settings(number)
        assert 0.75 * number <= len(grid) <= number
        assert len(set(grid)) == len(grid)
        assert all(eps_l2 > 0 and eps_h >= 0 for eps_l2, eps_h in grid)
    drawn = random_settings(200, seed=3)
    assert drawn == random_settings(200, seed=3) != random_settings(200, seed=4)
    assert min(eps_l2 for eps_l2, _ in drawn) < 1e-6 < 1e-2 < max(eps_l2 for eps_l2, _ in drawn)
    for count in (0, -1):
        with pytest.raises(UsageError, match="needs settings"):
            grid_settings(count)
        with pytest.raises(UsageError, match="needs settings"):
            random_settings(count)


def test_results_do_not_depend_on_the_order_of_the_settings() -> None:
    settings = grid_settings(40)
    shuffled = [settings[place] for place in np.random.default_rng(0).permutation(len(settings))]
    told: list[float] = []
    first = {
        (p.eps_l2, p.eps_h): p for p in solve_settings(PROBLEM, settings, on_point=lambda p: told.append(p.eps_l2))
    }
    assert told == sorted(told)
    points = solve_settings(PROBLEM, shuffled)
    assert [(point.eps_l2, point.eps_h) for point in points] == shuffled
    for point in points:
        np.testing.assert_array_equal(point.ranking, first[point.eps_l2, point.eps_h].ranking)
        np.testing.assert_array_equal(np.sort(point.ranking), np.arange(16))
        assert set(point.ranking[: len(point.support)]) == set(point.support)


def test_a_warm_start_ends_no_worse_than_a_cold_one_on_the_whole() -> None:
    """The loss is not convex: single settings may end elsewhere, the mean must not suffer."""
    settings = [(eps_l2, eps_h) for eps_l2 in (1e-6, 1e-4, 1e-2) for eps_h in (0.0, 1e-3, 1e-2)]
    ratios = []
    for point in solve_settings(PROBLEM, settings, max_iterations=200, tolerance=1e-8):
        cold = alternate(PROBLEM, eps_l2=point.eps_l2, eps_h=point.eps_h, max_iterations=500, accelerate=True)
        warm = alternate(PROBLEM, eps_l2=point.eps_l2, eps_h=point.eps_h, start=point.w, max_iterations=1)
        ratios.append(warm.losses[-1] / cold.losses[-1])
    assert np.mean(ratios) <= 1.02


def test_stronger_settings_keep_fewer() -> None:
    weak, strong = solve_settings(PROBLEM, [(1e-8, 0.0), (1.0, 0.0)])
    assert len(weak.support) == 16
    assert len(strong.support) == 1


def test_single_precision_is_for_many_columns_and_a_ridge_it_can_resolve() -> None:
    precisions = Precisions((random_sample(0, positions=300, taps=4, patches=400).regression,))
    uniform, few = np.full(300, 1 / 300), np.zeros(300)
    few[:100] = 0.01
    assert isinstance(precisions.for_alternation(1e-5, uniform)[0], SingleRegression)
    assert precisions.for_alternation(1e-5, uniform) is precisions.for_alternation(1e-4, uniform)
    for problem in (precisions.for_alternation(1e-5, few), precisions.for_alternation(1e-8, uniform)):
        assert problem[0].gram.dtype == np.float64


def test_the_alternation_in_float32_follows_that_in_float64() -> None:
    problem = (random_sample(3, positions=60, taps=4, outputs=6, patches=900, noise=0.3).regression,)
    for eps_l2 in (1e-6, 1e-4):
        exact = alternate(problem, eps_l2=eps_l2, eps_h=1e-4, max_iterations=12, accelerate=True)
        rounded = alternate(
            in_single_precision(problem), eps_l2=eps_l2, eps_h=1e-4, max_iterations=12, accelerate=True
        )
        assert rounded.lambdas[0].dtype == np.float32
        assert rounded.losses[-1] == pytest.approx(exact.losses[-1], rel=1e-3)
        np.testing.assert_allclose(rounded.w, exact.w, atol=0.01)
