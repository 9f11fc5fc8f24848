"""Many settings of the two hyperparameters on one problem, each from a warm start.

The paper calls a grid search over (ε_L2, ε_H) prohibitive; on statistics a setting is a few small factorisations.
A trunk of alternations at ε_H = 0 walks up a fixed ladder of ε_L2; each setting starts from the last trunk point
below it, or, where its predecessor has the same ε_L2 and a smaller ε_H, from there. Results depend on the problem
and on the settings, not on their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from streamsparse.errors import UsageError
from streamsparse.kernels.entropic import EntropicResult, alternate
from streamsparse.kernels.entropic_path import EPS_L2_VALUES, Memory, PathPoint
from streamsparse.kernels.regression import Problem, check_problem
from streamsparse.kernels.single_precision import Precisions

Setting = tuple[float, float]
"""(ε_L2, ε_H)."""

_EPS_L2_RANGE = (1e-8, 1.0)
_EPS_H_RANGE = (1e-5, 1e-1)


def grid_settings(number: int) -> list[Setting]:
    """About `number` settings, never more: three times as many ε_L2 as ε_H, both geometric, ε_H = 0 included."""
    if number < 1:
        raise UsageError("A search needs settings.", expected="at least 1", got=number)
    fine = max(1, int(np.sqrt(number / 3)))
    eps_h = [0.0, *np.geomspace(*_EPS_H_RANGE, fine - 1).tolist()] if fine > 1 else [0.0]
    return list(product(np.geomspace(*_EPS_L2_RANGE, number // fine).tolist(), eps_h))


def random_settings(number: int, seed: int = 0) -> list[Setting]:
    """`number` settings, both hyperparameters log-uniform (Bergstra and Bengio, JMLR 13, 2012)."""
    if number < 1:
        raise UsageError("A search needs settings.", expected="at least 1", got=number)
    random = np.random.default_rng(seed)
    low, high = np.log([_EPS_L2_RANGE, _EPS_H_RANGE]).T
    drawn = np.exp(random.uniform(low, high, size=(number, 2)))
    return [(float(eps_l2), float(eps_h)) for eps_l2, eps_h in drawn]


def solve_settings(
    problem: Problem,
    settings: Sequence[Setting],
    *,
    max_iterations: int = 30,
    tolerance: float = 1e-4,
    on_point: Callable[[PathPoint], None] | None = None,
) -> list[PathPoint]:
    """The alternation's solution at every setting, in the order of `settings`.

    Args:
        settings: (ε_L2, ε_H), ε_L2 > 0, ε_H ≥ 0.
        max_iterations, tolerance: of each accelerated alternation.
        on_point: called with every point as soon as it is solved, by growing ε_L2.
    """
    walk = _Walk(problem, max_iterations, tolerance)
    points: list[PathPoint | None] = [None] * len(settings)
    for place in sorted(range(len(settings)), key=lambda number: settings[number]):
        points[place] = point = walk.solve(*settings[place])
        if on_point is not None:
            on_point(point)
    return [point for point in points if point is not None]


class _Walk:
    """Where the trunk and the last setting ended (mutable)."""

    def __init__(self, problem: Problem, max_iterations: int, tolerance: float) -> None:
        positions = check_problem(problem)
        self._precisions = Precisions(problem)
        self._max_iterations, self._tolerance = max_iterations, tolerance
        self._trunk = self._last = Memory.of(np.full(positions, 1 / positions))
        self._trunk_w = self._last_w = np.full(positions, 1 / positions)
        self._ladder = list(EPS_L2_VALUES[::-1])
        self._last_setting: Setting = (0.0, 0.0)

    def solve(self, eps_l2: float, eps_h: float) -> PathPoint:
        """The next setting, not below the last one."""
        while self._ladder and self._ladder[-1] <= eps_l2:
            result = self._alternate(self._ladder.pop(), 0.0, self._trunk_w)
            self._trunk_w, self._trunk = result.w, self._trunk.after(result.w)
        nested = self._last_setting[0] == eps_l2 and self._last_setting[1] <= eps_h
        start, memory = (self._last_w, self._last) if nested else (self._trunk_w, self._trunk)
        result = self._alternate(eps_l2, eps_h, start)
        self._last_w, self._last = result.w, memory.after(result.w)
        self._last_setting = (eps_l2, eps_h)
        return PathPoint(eps_l2, eps_h, result.w, self._last.ranking(), result.w_steps)

    def _alternate(self, eps_l2: float, eps_h: float, start: np.ndarray) -> EntropicResult:
        return alternate(
            self._precisions.for_alternation(eps_l2, start),
            eps_l2=eps_l2,
            eps_h=eps_h,
            start=start,
            max_iterations=self._max_iterations,
            tolerance=self._tolerance,
            accelerate=True,
        )
