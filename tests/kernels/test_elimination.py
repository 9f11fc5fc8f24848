"""Backward elimination against exhaustive refits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from streamsparse.kernels.elimination import eliminate, inverse, shrink
from streamsparse.kernels.regression import (
    Regression,
    loss_weights,
    support_error,
)
from tests.strategies import problems, random_sample, refit_objective


@given(problems(max_positions=8))
@settings(max_examples=60, deadline=None)
def test_errors_are_those_of_a_refit_at_every_count(problem: tuple[Regression, ...]) -> None:
    elimination = eliminate(problem)
    positions = problem[0].positions
    assert sorted(elimination.order) == list(range(positions))
    assert (np.diff(elimination.errors) <= 1e-12).all()
    for count in range(positions + 1):
        support = elimination.support(count)
        assert len(support) == count
        error = elimination.errors[count]
        assert error == pytest.approx(support_error(problem, support, elimination.ridge), rel=1e-6, abs=1e-9)
        objectives = [refit_objective(each, support, elimination.ridge) for each in problem if each.power > 0]
        assert error == pytest.approx(np.mean(objectives), rel=1e-5, abs=1e-9)


@given(problems(max_positions=7))
@settings(max_examples=40, deadline=None)
def test_every_removal_is_the_cheapest(problem: tuple[Regression, ...]) -> None:
    elimination = eliminate(problem)
    alive = list(range(problem[0].positions))
    for removed in elimination.order:
        rises = [
            support_error(problem, np.array([p for p in alive if p != candidate]), elimination.ridge)
            for candidate in alive
        ]
        chosen = rises[alive.index(removed)]
        assert chosen <= min(rises) + 1e-5 * max(rises) + 1e-8
        alive.remove(int(removed))


@pytest.mark.parametrize(("positions", "taps", "outputs"), [(70, 1, 5), (45, 4, 30)])
def test_many_channels_pass_through_updates_and_inversions(positions: int, taps: int, outputs: int) -> None:
    """Large enough for several gathered updates and several fresh inversions."""
    regression = random_sample(8, positions=positions, taps=taps, outputs=outputs, patches=600).regression
    elimination = eliminate((regression,))
    alive = np.arange(positions)
    for step, removed in enumerate(elimination.order[:-1]):
        if step % 9 == 0:
            rises = [support_error((regression,), np.delete(alive, slot)) for slot in range(len(alive))]
            assert alive[int(np.argmin(rises))] == removed
        alive = alive[alive != removed]


def test_dead_channels_go_first_and_duplicates_cost_nothing() -> None:
    regression = random_sample(4, positions=6, noise=1.0).regression
    gram, cross = regression.gram.copy(), regression.cross.copy()
    gram[3], gram[:, 3], cross[3] = 0, 0, 0
    elimination = eliminate((Regression(gram, cross, regression.power, taps=1),))
    assert elimination.order[0] == 3
    twice = np.array([0, 1, 2, 3, 4, 5, 0, 1])
    doubled = Regression(gram[np.ix_(twice, twice)], cross[twice], regression.power, taps=1)
    errors = eliminate((doubled,)).errors
    assert errors[5] == pytest.approx(errors[8], rel=1e-6)


def test_constant_responses_have_no_error_at_any_count() -> None:
    gram = random_sample(4, positions=3).regression.gram
    constant = Regression(gram, np.zeros((3, 2)), 0.0, taps=1)
    assert loss_weights((constant,)) == (0.0,)
    assert not eliminate((constant,)).errors.any()


def test_scales_of_channels_do_not_change_the_order() -> None:
    regression = random_sample(9, positions=8, taps=2, noise=0.5).regression
    factors = np.repeat(10.0 ** np.array([6, -6, 0, 3, -3, 1, 6, -6]), 2)
    scaled = Regression(
        regression.gram * factors * factors[:, None],
        regression.cross * factors[:, None] * 1e6,
        regression.power * 1e12,
        taps=2,
    )
    plain, other = eliminate((regression,)), eliminate((scaled,))
    np.testing.assert_array_equal(other.order, plain.order)
    np.testing.assert_allclose(other.errors, plain.errors, rtol=1e-9)


def test_inverse_fills_both_triangles() -> None:
    system = random_sample(1, positions=5, taps=3).regression.gram
    np.testing.assert_allclose(inverse(system.copy()), np.linalg.inv(system), rtol=1e-9)


def test_shrinking_a_support_removes_the_cheapest_first() -> None:
    problem = (random_sample(3, positions=12, taps=2, noise=0.5).regression,)
    support = np.array([0, 2, 3, 5, 8, 9, 11])
    order = shrink(problem, support, 4)
    np.testing.assert_array_equal(np.sort(order), support)
    np.testing.assert_array_equal(order[:3], np.sort(order[:3]))
    for left in range(7, 3, -1):
        alive = order[:left]
        rises = [support_error(problem, np.delete(alive, slot)) for slot in range(left)]
        assert rises[-1] == pytest.approx(min(rises), rel=1e-9)
    np.testing.assert_array_equal(shrink(problem, support, 0), support)
    assert sorted(shrink(problem, support, 99)) == support.tolist()
    constant = (Regression(problem[0].gram, np.zeros((24, 2)), 0.0, taps=2),)
    assert sorted(shrink(constant, support, 2)) == support.tolist()
