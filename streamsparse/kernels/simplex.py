"""Convex quadratic programs on the probability simplex, solved to round-off.

Accelerated projected gradient (Beck and Teboulle 2009, restarted as in O'Donoghue and Candès 2015) finds which
entries are 0; a primal active-set step on the remaining ones is exact. The two alternate until the optimality gap
is closed. Nothing here ever returns a point that is worse than the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.linalg import eigvalsh

_ROUNDS = 10
_GRADIENT_STEPS = 150
_FACES = 25
_GAP = 1e-11  # of the largest entry of the gradient


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The function wᵀA w − 2bᵀw.

    Attributes:
        matrix: A, symmetric positive semidefinite (n, n).
        vector: b (n,).
    """

    matrix: Float64[np.ndarray, "entries entries"]
    vector: Float64[np.ndarray, " entries"]

    def value(self, w: Float64[np.ndarray, " entries"]) -> float:
        """wᵀA w − 2bᵀw."""
        return float(w @ (self.matrix @ w - 2 * self.vector))

    def gradient(self, w: Float64[np.ndarray, " entries"]) -> Float64[np.ndarray, " entries"]:
        """2 (A w − b)."""
        gradient: np.ndarray = 2 * (self.matrix @ w - self.vector)
        return gradient


def project_to_simplex(v: Float64[np.ndarray, " entries"]) -> Float64[np.ndarray, " entries"]:
    """The nearest probability vector in Euclidean distance (Held, Wolfe and Crowder 1974)."""
    descending = np.sort(v)[::-1]
    surplus = np.cumsum(descending) - 1
    count = np.arange(1, len(v) + 1)
    last = int(np.flatnonzero(descending * count > surplus)[-1])
    projected = np.maximum(v - surplus[last] / (last + 1), 0.0)
    normalised: np.ndarray = projected / projected.sum()
    return normalised


def minimise_on_simplex(
    quadratic: Quadratic, start: Float64[np.ndarray, " entries"]
) -> Float64[np.ndarray, " entries"]:
    """Minimise wᵀA w − 2bᵀw over probability vectors, from a feasible start.

    The active-set method ends at the optimum up to the round-off of its linear systems; as long as it gives up
    before, gradient steps bring it nearer. The result is never worse than the start.
    """
    scale = float(np.abs(quadratic.matrix).max() + np.abs(quadratic.vector).max())
    if len(start) == 1 or scale == 0:
        return start
    best, best_value = start, quadratic.value(start)
    for _ in range(_ROUNDS):
        point, finished = _solve_on_faces(quadratic, best)
        for candidate in [point] if finished else [point, _project_gradients(quadratic, point)]:
            if (value := quadratic.value(candidate)) < best_value:
                best, best_value = candidate, value
        if finished:
            break
    return best


def _project_gradients(quadratic: Quadratic, start: np.ndarray) -> np.ndarray:
    """Accelerated projected gradient, a fixed number of steps."""
    largest = float(eigvalsh(quadratic.matrix, check_finite=False)[-1])
    if largest <= 0:
        return start
    step = 1 / (2 * largest)
    point = ahead = start
    momentum = 1.0
    for _ in range(_GRADIENT_STEPS):
        following = project_to_simplex(ahead - step * quadratic.gradient(ahead))
        if (ahead - following) @ (following - point) > 0:  # the momentum points uphill: restart
            momentum, ahead = 1.0, point
            following = project_to_simplex(ahead - step * quadratic.gradient(ahead))
        grown = (1 + np.sqrt(1 + 4 * momentum * momentum)) / 2
        ahead = following + (momentum - 1) / grown * (following - point)
        moved = float(np.abs(following - point).max())
        point, momentum = following, grown
        if moved <= 1e-14:
            break
    return point


def _solve_on_faces(quadratic: Quadratic, start: np.ndarray) -> tuple[np.ndarray, bool]:
    """Primal active-set method: exact minimiser on a face, then the entry that gains most joins the face.

    Gives up after a number of faces (many entries leave: work for the gradient steps); whether it ended at the
    optimum is the second value.
    """
    point, face = start, np.flatnonzero(start > 0)
    for _ in range(_FACES):
        target = _stationary_point(quadratic, face)
        direction = target - point[face]
        falling = target < 0
        ratios = np.full(len(face), np.inf)
        ratios[falling] = point[face][falling] / -direction[falling]
        length = min(1.0, float(ratios.min()))
        moved = np.zeros_like(point)
        moved[face] = np.maximum(point[face] + length * direction, 0.0)
        if length < 1.0:
            moved[face[int(np.argmin(ratios))]] = 0.0
        point = moved / moved.sum()
        if length < 1.0:
            face = np.flatnonzero(point > 0)
            continue
        gradient = quadratic.gradient(point)
        entering = int(np.argmin(gradient))
        if point[entering] > 0 or gradient[entering] >= gradient @ point - _GAP * np.abs(gradient).max():
            return point, True
        face = np.sort(np.append(np.flatnonzero(point > 0), entering))
    return point, False


def _stationary_point(quadratic: Quadratic, face: np.ndarray) -> np.ndarray:
    """The minimiser of the quadratic on {Σw = 1} within the face.

    A vanishing multiple of the identity makes it unique where A is singular (dead or duplicate channels).
    """
    matrix = np.array(quadratic.matrix[np.ix_(face, face)])
    scale = max(float(quadratic.matrix.diagonal().max()), float(np.abs(quadratic.vector).max()))
    matrix[np.diag_indices_from(matrix)] += 1e-13 * scale
    both = np.linalg.solve(matrix, np.column_stack([quadratic.vector[face], np.ones(len(face))]))
    target: np.ndarray = both[:, 0] + (1 - both[:, 0].sum()) / both[:, 1].sum() * both[:, 1]
    return target
