"""Every method on degenerate problems: defined, sound, and as good as common sense says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from streamsparse.kernels.channel_units import in_comparable_units
from streamsparse.kernels.front import Front, Method, solve_front
from streamsparse.kernels.regression import Problem, Regression, columns_of, support_error
from tests.strategies import random_sample, sample_of

METHODS: tuple[Method, ...] = ("elimination", "entropic", "best")
POSITIONS, TAPS = 8, 2

every_method = pytest.mark.parametrize("method", METHODS)


def patches_and_responses(patches: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Channels of unit power, and responses with noise."""
    sample = random_sample(seed, positions=POSITIONS, taps=TAPS, patches=patches, noise=0.5)
    power = np.square(sample.patches).mean(axis=0).reshape(POSITIONS, TAPS).mean(axis=1)
    return sample.patches / np.repeat(np.sqrt(power), TAPS), sample.responses


def regression_of(patches: np.ndarray, responses: np.ndarray) -> Regression:
    return sample_of(patches, responses, TAPS).regression


def dead() -> Regression:
    patches, responses = patches_and_responses()
    patches[:, columns_of([2, 5], TAPS)] = 0
    return regression_of(patches, responses)


def all_dead() -> Regression:
    return Regression(np.zeros((16, 16)), np.zeros((16, 3)), 1.0, TAPS)


def duplicate() -> Regression:
    patches, responses = patches_and_responses()
    patches[:, columns_of([6, 7], TAPS)] = patches[:, columns_of([0, 3], TAPS)]
    return regression_of(patches, responses)


def few_patches() -> Regression:
    return regression_of(*patches_and_responses(patches=7))


def one_patch() -> Regression:
    patches, responses = patches_and_responses(patches=2)
    return Regression(
        patches[:1].T @ patches[:1], patches[:1].T @ responses[:1], float(responses[0] @ responses[0]), 2
    )


def singular() -> Regression:
    """Every channel a mixture of three directions."""
    random = np.random.default_rng(0)
    patches = random.standard_normal((300, 3)) @ random.standard_normal((3, POSITIONS * TAPS))
    return regression_of(patches, patches @ random.standard_normal((POSITIONS * TAPS, 3)))


def constant_responses() -> Regression:
    patches, responses = patches_and_responses()
    return regression_of(patches, np.ones_like(responses))


def single_precision_sums() -> Regression:
    random = np.random.default_rng(0)
    patches, responses = patches_and_responses(patches=10)  # singular: round-off makes it indefinite
    whole = regression_of(patches, responses)
    noise = 1 + 6e-8 * random.uniform(-1, 1, whole.gram.shape)
    return Regression(whole.gram * (noise + noise.T) / 2, whole.cross.astype(np.float32), whole.power, TAPS)


CASES: tuple[Callable[[], Regression], ...] = (
    dead, all_dead, duplicate, few_patches, one_patch, singular, constant_responses, single_precision_sums,
)  # fmt: skip


def assert_sound(front: Front, problem: Problem) -> None:
    """A support of every size; errors that never rise and are those of the supports' own refits."""
    assert front.errors[0] == (1.0 if any(regression.power for regression in problem) else 0.0)
    assert np.isfinite(front.errors).all()
    assert (np.diff(front.errors) <= 0).all()
    for count, support in enumerate(front.supports):
        assert len(np.unique(support)) == len(support) == count
        own = support_error(problem, support, front.ridge)
        assert own == pytest.approx(front.errors[count], rel=1e-5, abs=1e-7)


@every_method
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_method_is_defined_and_best_is_no_worse(method: Method, case: Callable[[], Regression]) -> None:
    for problem in ((case(),), (case(), dead())):
        front = solve_front(problem, method=method)
        assert_sound(front, problem)
        if method != "best":
            assert (solve_front(problem).errors <= front.errors + 1e-9).all()


@every_method
def test_dead_channels_are_kept_last(method: Method) -> None:
    front = solve_front((dead(),), method=method)
    assert front.errors[6] == pytest.approx(front.errors[8], rel=1e-9)
    for support in front.supports[1:7]:
        assert not {2, 5} & set(support.tolist())


@every_method
def test_nothing_to_see_leaves_the_error_of_the_mean(method: Method) -> None:
    np.testing.assert_array_equal(solve_front((all_dead(),), method=method).errors, 1.0)


@every_method
def test_the_second_of_two_equal_channels_adds_nothing(method: Method) -> None:
    front = solve_front((duplicate(),), method=method)
    assert front.errors[6] == pytest.approx(front.errors[8], rel=1e-6)
    for support in front.supports[1:7]:
        assert not {0, 6} <= set(support.tolist())
        assert not {3, 7} <= set(support.tolist())


@every_method
def test_few_patches_and_singular_grams_are_fitted_exactly(method: Method) -> None:
    assert solve_front((few_patches(),), method=method).errors[-1] <= 1e-6
    front = solve_front((singular(),), method=method)
    assert front.errors[2] <= 1e-6  # two channels of two taps span the three directions


@every_method
def test_constant_responses_cost_nothing_and_count_for_nothing(method: Method) -> None:
    assert not solve_front((constant_responses(),), method=method).errors.any()
    alone = solve_front((dead(),), method=method)
    joint = solve_front((dead(), constant_responses()), method=method)
    np.testing.assert_allclose(joint.errors, alone.errors, rtol=1e-9)


@every_method
def test_one_channel(method: Method) -> None:
    problem = (random_sample(0, positions=1, noise=0.5).regression,)
    front = solve_front(problem, method=method)
    assert_sound(front, problem)
    assert front.positions == 1
    assert front.errors[1] < 1


@every_method
def test_scales_of_channels_change_nothing(method: Method) -> None:
    patches, responses = patches_and_responses()
    scale = np.repeat(10.0 ** np.array([6, -6, 0, 3, -3, 1, 6, -6]), TAPS)
    plain = solve_front((regression_of(patches, responses),), method=method)
    scaled = solve_front((regression_of(patches * scale, responses),), method=method)
    np.testing.assert_allclose(scaled.errors, plain.errors, rtol=1e-5)


@every_method
def test_scales_of_consumers_change_nothing(method: Method) -> None:
    first, second = patches_and_responses(seed=1), patches_and_responses(seed=2)
    plain = solve_front((regression_of(*first), regression_of(*second)), method=method)
    scaled = (regression_of(first[0] * 1e6, first[1] * 1e-6), regression_of(second[0] * 1e-6, second[1] * 1e6))
    np.testing.assert_allclose(solve_front(scaled, method=method).errors, plain.errors, rtol=1e-5)


@every_method
def test_statistics_in_float32_give_the_same_front_up_to_round_off(method: Method) -> None:
    whole = regression_of(*patches_and_responses())
    rounded = Regression(whole.gram.astype(np.float32), whole.cross.astype(np.float32), whole.power, TAPS)
    exact, found = solve_front((whole,), method=method), solve_front((rounded,), method=method)
    np.testing.assert_allclose(found.errors, exact.errors, rtol=1e-4, atol=1e-6)


def test_comparable_units_leave_ordinary_layers_alone() -> None:
    ordinary = (dead(), duplicate())
    assert in_comparable_units(ordinary) == ordinary
    patches, responses = patches_and_responses()
    scale = np.repeat(10.0 ** np.array([6, -6, 0, 3, -3, 1, 6, -6]), TAPS)
    (brought,) = in_comparable_units((regression_of(patches * scale, responses),))
    np.testing.assert_allclose(brought.gram, regression_of(patches, responses).gram, rtol=1e-8, atol=1e-12)
