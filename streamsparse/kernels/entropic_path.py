"""Supports of every size from sparse entropic regression: a walk along both hyperparameters.

ε_L2 sets the coarse sparsity: eliminating Λ turns its ridge into a group penalty of exponent 2/3, so that a
growing ε_L2 empties one channel after the other. ε_H sets the fine sparsity. Each point starts from its
predecessor's weights; a channel that left stays out, so supports along the walk are nested and the ranking (by
weight, then by how late a channel left) gives a support of every size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from streamsparse.kernels.entropic import EntropicResult, alternate, check_start
from streamsparse.kernels.regression import Problem
from streamsparse.kernels.single_precision import Precisions

EPS_L2_VALUES = tuple(float(value) for value in np.geomspace(1e-9, 1e1, 31))
EPS_H_VALUES = (0.0, 1e-3, 1e-2)


@dataclass(frozen=True, eq=False)
class PathPoint:
    """One solution along the walk.

    Attributes:
        eps_l2, eps_h: the hyperparameters.
        w: probability vector (C,).
        ranking: all positions, best first: by weight, then by how late they left; its first k are a support of
            size k.
        w_steps: number of W-steps that this point took.
    """

    eps_l2: float
    eps_h: float
    w: Float64[np.ndarray, " positions"]
    ranking: Int64[np.ndarray, " positions"]
    w_steps: int

    @property
    def support(self) -> Int64[np.ndarray, " kept"]:
        """Sorted positions with w > 0."""
        return np.flatnonzero(self.w)


@dataclass(frozen=True, eq=False)
class Memory:
    """When each channel was last in, and with which weight: the order of disappearance."""

    last_in: np.ndarray  # (positions,) number of the walk's step
    weight: np.ndarray  # (positions,) at that step

    @classmethod
    def of(cls, w: np.ndarray) -> Memory:
        """Before the first step."""
        return cls(np.zeros(len(w), dtype=np.int64), w)

    def after(self, w: np.ndarray) -> Memory:
        """Remember one more step of the walk."""
        step = self.last_in.max() + 1
        return Memory(np.where(w > 0, step, self.last_in), np.where(w > 0, w, self.weight))

    def ranking(self) -> np.ndarray:
        """Positions, best first; ties go to the lower position."""
        return np.lexsort((np.arange(len(self.weight)), -self.weight, -self.last_in))


def entropic_path(
    problem: Problem,
    eps_l2_values: Sequence[float] = EPS_L2_VALUES,
    eps_h_values: Sequence[float] = EPS_H_VALUES,
    *,
    start: Float64[np.ndarray, " positions"] | None = None,
    max_iterations: int = 30,
    tolerance: float = 1e-4,
    accelerate: bool = True,
    on_point: Callable[[PathPoint], None] | None = None,
) -> list[PathPoint]:
    """Walk ε_L2 upwards, and at each of its values ε_H upwards, until one channel is left.

    As long as there are many active columns and ε_L2 is not tiny, the alternation runs in float32.

    Args:
        eps_l2_values, eps_h_values: walked in increasing order.
        start: probability vector to start from; uniform if None.
        max_iterations, tolerance, accelerate: of the alternation at each point.
        on_point: called with every point as soon as it is solved.
    """
    w = check_start(problem, start)
    memory = Memory.of(w)
    points: list[PathPoint] = []
    precisions = Precisions(problem)
    for eps_l2 in sorted(eps_l2_values):
        fine_w, fine_memory = w, memory
        for number, eps_h in enumerate(sorted(eps_h_values)):
            before = np.count_nonzero(fine_w)
            result = alternate(
                precisions.for_alternation(eps_l2, fine_w),
                eps_l2=eps_l2,
                eps_h=eps_h,
                start=fine_w,
                max_iterations=max_iterations,
                tolerance=tolerance,
                accelerate=accelerate,
            )
            fine_w, fine_memory = result.w, fine_memory.after(result.w)
            if number == 0:  # the trunk of the walk: the next ε_L2 starts from the least ε_H
                w, memory = fine_w, fine_memory
            if number == 0 or np.count_nonzero(fine_w) < before:
                points.append(_point(eps_l2, eps_h, result, fine_memory))
                if on_point is not None:
                    on_point(points[-1])
        if np.count_nonzero(w) == 1:
            break
    return points


def _point(eps_l2: float, eps_h: float, result: EntropicResult, memory: Memory) -> PathPoint:
    return PathPoint(eps_l2, eps_h, result.w, memory.ranking(), result.w_steps)
