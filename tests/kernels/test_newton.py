"""Newton's step on the loss with Λ eliminated, and what it saves."""

from __future__ import annotations

import numpy as np
import pytest

from streamsparse.kernels.entropic import alternate, reduced_loss, weight_step
from streamsparse.kernels.newton import newton_target, reduced_derivatives
from streamsparse.kernels.regression import Problem
from tests.strategies import random_sample


def joint_problem(seed: int, positions: int) -> Problem:
    return (
        random_sample(seed, positions=positions, taps=2, noise=0.3).regression,
        random_sample(seed + 1, positions=positions, taps=1, outputs=5, noise=0.3).regression,
    )


def eliminated(problem: Problem, w: np.ndarray, eps_l2: float, eps_h: float) -> float:
    return reduced_loss(problem, w, weight_step(problem, w, eps_l2), eps_h)


@pytest.mark.parametrize("eps_h", [0.0, 0.1])
def test_derivatives_are_those_of_finite_differences(eps_h: float) -> None:
    problem, eps_l2 = joint_problem(0, 5), 1e-2
    w = np.array([0.3, 0.1, 0.0, 0.4, 0.2])
    active = np.flatnonzero(w)
    gradient, scaled = reduced_derivatives(problem, w, weight_step(problem, w, eps_l2), eps_l2, eps_h)
    hessian = scaled / w[active] / w[active][:, None]
    step = 1e-5

    def moved(first: int, second: int, signs: tuple[int, int]) -> float:
        point = w.copy()
        point[active[first]] += signs[0] * step
        point[active[second]] += signs[1] * step
        return eliminated(problem, point, eps_l2, eps_h)

    for first in range(4):
        slope = (moved(first, first, (1, 0)) - moved(first, first, (-1, 0))) / (2 * step)
        assert gradient[first] == pytest.approx(slope, rel=1e-4, abs=1e-7)
        for second in range(4):
            mixed = moved(first, second, (1, 1)) + moved(first, second, (-1, -1))
            mixed -= moved(first, second, (1, -1)) + moved(first, second, (-1, 1))
            expected = mixed / (4 * step * step)
            assert hessian[first, second] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_target_is_a_probability_vector_on_the_same_channels() -> None:
    problem = joint_problem(3, 8)
    w = np.array([0.3, 0.1, 0.0, 0.2, 0.1, 0.1, 0.0, 0.2])
    target = newton_target(problem, w, weight_step(problem, w, 1e-3), 1e-3, 1e-3)
    assert target.sum() == pytest.approx(1)
    np.testing.assert_array_equal(target == 0, w == 0)


@pytest.mark.parametrize("eps_l2", [1e-7, 1e-6])
def test_acceleration_reaches_the_plain_loss_in_a_fraction_of_the_steps(eps_l2: float) -> None:
    problem = (random_sample(11, positions=30, taps=3, outputs=8, patches=800).regression,)
    plain = alternate(problem, eps_l2=eps_l2, eps_h=1e-5, max_iterations=300)
    fast = alternate(problem, eps_l2=eps_l2, eps_h=1e-5, max_iterations=300, accelerate=True)
    assert fast.losses[-1] <= plain.losses[-1] * (1 + 1e-3)
    assert fast.w_steps * 5 <= plain.w_steps
