"""Regressions in float32, for candidates: half the time and memory of float64 where round-off does not decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamsparse.kernels.regression import Problem, Regression

_SINGLE_FROM_COLUMNS = 1024  # active ones: below, float64 is cheap
_SINGLE_FROM_EPS_L2 = 9e-7  # with that many columns D G D + ridge is then far from singular in float32


@dataclass(frozen=True, eq=False)
class SingleRegression(Regression):
    """Moments in float32 of a regression that was checked in float64."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "gram", np.asarray(self.gram, dtype=np.float32))
        object.__setattr__(self, "cross", np.asarray(self.cross, dtype=np.float32))


def in_single_precision(problem: Problem) -> Problem:
    """A rounded copy of every regression."""
    return tuple(SingleRegression(each.gram, each.cross, each.power, each.taps) for each in problem)


class Precisions:
    """A problem in both precisions (mutable: float32 is made when it is first asked for)."""

    def __init__(self, problem: Problem) -> None:
        self._double = problem
        self._single: Problem | None = None

    def for_alternation(self, eps_l2: float, w: np.ndarray) -> Problem:
        """float32 as long as there are many active columns and ε_L2 is not tiny; else float64."""
        columns = np.count_nonzero(w) * max(regression.taps for regression in self._double)
        if eps_l2 < _SINGLE_FROM_EPS_L2 or columns < _SINGLE_FROM_COLUMNS:
            return self._double
        if self._single is None:
            self._single = in_single_precision(self._double)
        return self._single
