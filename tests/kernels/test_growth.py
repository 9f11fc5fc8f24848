"""Forward selection against exhaustive refits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.kernels.growth import addition_gains, grow
from streamsparse.kernels.regression import Regression, safe_ridge, support_error
from tests.strategies import problems, random_sample


@given(problems(max_positions=7), st.data())
@settings(max_examples=60, deadline=None)
def test_gains_are_those_of_refits(problem: tuple[Regression, ...], data: st.DataObject) -> None:
    positions = problem[0].positions
    support = np.array(sorted(data.draw(st.sets(st.integers(0, positions - 1)))), dtype=np.int64)
    ridge = safe_ridge(problem)
    here, gains = support_error(problem, support, ridge), addition_gains(problem, support, ridge)
    assert not gains[support].any()
    for position in np.setdiff1d(np.arange(positions), support):
        larger = support_error(problem, np.append(support, position), ridge)
        assert here - gains[position] == pytest.approx(larger, rel=1e-6, abs=1e-8)


def test_every_addition_is_the_best_one() -> None:
    first = random_sample(0, positions=12, taps=3, noise=0.3).regression
    second = random_sample(1, positions=12, taps=1, outputs=5, noise=0.3).regression
    problem = (first, second)
    support = np.array([2, 9])
    added = grow(problem, support, 10)
    assert sorted([*support, *added]) == list(range(12))
    for count, position in enumerate(added):
        here = np.append(support, added[:count])
        errors = {
            other: support_error(problem, np.append(here, other)) for other in np.setdiff1d(np.arange(12), here)
        }
        assert errors[position] == pytest.approx(min(errors.values()), rel=1e-9)


def test_growing_from_nothing_and_by_nothing() -> None:
    problem = (random_sample(0, positions=6, noise=0.3).regression,)
    assert len(grow(problem, np.arange(3), 0)) == 0
    assert not addition_gains(problem, np.arange(6)).any()
    first = grow(problem, np.array([], dtype=np.int64), 1)
    assert first == np.argmin([support_error(problem, np.array([position])) for position in range(6)])


def test_constant_responses_grow_in_order() -> None:
    gram = random_sample(0, positions=4).regression.gram
    constant = (Regression(gram, np.zeros((4, 1)), 0.0, taps=1),)
    np.testing.assert_array_equal(grow(constant, np.array([1]), 2), [0, 2])
