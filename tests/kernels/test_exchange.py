"""Exact swap scores and a local search that only ever improves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.kernels.elimination import eliminate
from streamsparse.kernels.exchange import exchange, search
from streamsparse.kernels.growth import addition_gains
from streamsparse.kernels.regression import Regression, safe_ridge, support_error
from tests.strategies import problems, random_sample


def swaps(problem: tuple[Regression, ...], support: np.ndarray, ridge: float) -> list[float]:
    """Training errors after every possible swap, by brute force."""
    dropped = np.setdiff1d(np.arange(problem[0].positions), support)
    return [
        support_error(problem, np.append(np.delete(support, slot), entering), ridge)
        for slot in range(len(support))
        for entering in dropped
    ]


@given(problems(max_positions=7), st.data())
@settings(max_examples=60, deadline=None)
def test_the_result_is_no_worse_and_no_swap_improves_it(
    problem: tuple[Regression, ...], data: st.DataObject
) -> None:
    positions = problem[0].positions
    start = np.array(sorted(data.draw(st.sets(st.integers(0, positions - 1)))), dtype=np.int64)
    ridge = safe_ridge(problem)
    found = exchange(problem, start)
    assert len(found) == len(start)
    assert (np.diff(found) > 0).all()
    error = support_error(problem, found, ridge)
    assert error <= support_error(problem, start, ridge)
    # supports that fit exactly differ by their ridge terms alone, which are of the ridge's own size
    assert all(other >= error * (1 - 1e-5) - ridge for other in swaps(problem, found, ridge))


def test_costs_gains_and_the_first_swap_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    first = random_sample(0, positions=9, taps=3, noise=0.3).regression
    second = random_sample(1, positions=9, taps=1, outputs=5, noise=0.3).regression
    problem = (first, second)
    support = np.array([1, 4, 7, 8])
    here = search(problem, support, ridge=1e-8, max_swaps=0)
    removed = [support_error(problem, np.delete(support, slot)) for slot in range(4)]
    added = [support_error(problem, np.append(support, position)) for position in here.dropped]
    np.testing.assert_allclose(here.error + here.removal_costs, removed, rtol=1e-9)
    np.testing.assert_allclose(here.error - here.addition_gains, added, rtol=1e-9)
    np.testing.assert_allclose(addition_gains(problem, support)[here.dropped], here.addition_gains, rtol=1e-9)
    once = exchange(problem, support, max_swaps=1)
    best = min(swaps(problem, support, 1e-8))
    assert support_error(problem, once) <= best * (1 + 1e-12)
    monkeypatch.setattr("streamsparse.kernels.exchange._SWAPS_AT_ONCE", 1)
    assert support_error(problem, exchange(problem, support, max_swaps=1)) == pytest.approx(best, rel=1e-12)


def test_it_escapes_where_greedy_elimination_is_wrong() -> None:
    """A channel that is the sum of two: greedy elimination drops it first at no cost, yet alone it is best."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((400, 3))
    inputs[:, 2] = inputs[:, 0] + inputs[:, 1] + 0.01 * random.standard_normal(400)
    response = inputs[:, :1] + inputs[:, 1:2]
    gram, cross = inputs.T @ inputs / 400, inputs.T @ response / 400
    problem = (Regression(gram, cross, float(np.square(response).mean()), taps=1),)
    greedy = eliminate(problem)
    assert greedy.order[0] == 2
    assert greedy.errors[1] > 0.3
    np.testing.assert_array_equal(exchange(problem, greedy.support(1)), [2])


def test_candidates_limit_the_search_without_making_it_worse() -> None:
    problem = (random_sample(3, positions=20, taps=2).regression,)
    start = np.arange(10)
    limited, full = exchange(problem, start, candidates=3), exchange(problem, start)
    assert support_error(problem, full) <= support_error(problem, start)
    assert support_error(problem, limited) <= support_error(problem, start)


def test_nothing_to_swap() -> None:
    problem = (random_sample(0, positions=4).regression,)
    assert len(exchange(problem, np.array([], dtype=np.int64))) == 0
    np.testing.assert_array_equal(exchange(problem, np.arange(4)), np.arange(4))
