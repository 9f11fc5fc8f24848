"""Greedy backward elimination of channels: group optimal brain surgeon.

Source: B. Hassibi, D. Stork, "Second order derivatives for network pruning: optimal brain surgeon", NIPS 1992, for
blocks of columns and a quadratic loss, where it is exact. With H = (G + ridge)⁻¹ on the alive columns and
Q = H B, removing channel c raises the training error by tr(Q_cᵀ H_cc⁻¹ Q_c) / power. In Cholesky terms this is a
block-pivoted factorisation of H whose pivot is the channel of least score: updates of H are gathered in a factor U
(H_now = H − U Uᵀ) and applied as one matrix product after a few removals, so that they run at the speed of
a matrix product instead of that of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import dpotri, spotri

from streamsparse.errors import StatisticsError
from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.regression import (
    Problem,
    Regression,
    chain_errors,
    check_problem,
    loss_weights,
    ridge_penalty,
    safe_ridge,
)

_REMOVALS_PER_UPDATE = 16
_REINVERT_BELOW = 0.5  # of the columns at the last inversion: fresh round-off at an eighth of its cost


@dataclass(frozen=True, eq=False)
class Elimination:
    """The nested supports of backward elimination.

    Attributes:
        order: all positions in order of removal, (C,); the last k of them are the support of size k.
        errors: (C + 1,); errors[k] is the training error with k positions kept.
        ridge: the relative ridge that was used, the asked one or a larger power of ten times it.
    """

    order: Int64[np.ndarray, " positions"]
    errors: Float64[np.ndarray, " positions_plus_1"]
    ridge: float

    def support(self, kept: int) -> Int64[np.ndarray, " kept"]:
        """The sorted positions of the support of size `kept`."""
        return np.sort(self.order[len(self.order) - kept :])


def inverse(system: Float[np.ndarray, "columns columns"]) -> Float[np.ndarray, "columns columns"]:
    """Inverse of a symmetric positive definite matrix, Fortran order, same dtype; `system` is overwritten."""
    # The transpose of a C-ordered array is in Fortran order: LAPACK then works in place, without a copy.
    factor = cholesky(system.T, lower=True, overwrite_a=True, check_finite=False)
    result, status = (spotri if factor.dtype == np.float32 else dpotri)(
        np.asfortranarray(factor), lower=1, overwrite_c=1
    )
    if status:
        raise StatisticsError("A Gram matrix could not be inverted.", got=f"LAPACK status {status}")
    for row in range(1, len(result)):  # dpotri leaves the upper triangle alone
        result[:row, row] = result[row, :row]
    return np.asarray(result)


class _Consumer:
    """One regression under elimination: H, Q and the pending updates of its alive columns (mutable)."""

    def __init__(self, regression: Regression, weight: float, ridge: float, positions: np.ndarray) -> None:
        self.regression, self.weight, self.taps = regression, weight, regression.taps
        self.penalty = ridge_penalty(regression, ridge)
        self.invert(positions)

    def invert(self, positions: np.ndarray) -> None:
        """Start afresh from the Gram matrix on these positions."""
        columns = (positions[:, None] * self.taps + np.arange(self.taps)).ravel()
        system = self.regression.gram[np.ix_(columns, columns)]
        system[np.diag_indices_from(system)] += self.penalty[columns]
        self.inverse = inverse(system)
        self.weights = self.inverse @ self.regression.cross[columns]  # Q, (columns, outputs)
        self.blocks = diagonal_blocks(self.inverse, self.taps)
        self.pending = np.zeros((len(columns), 0), order="F")

    def scores(self) -> np.ndarray:
        """Rise of the weighted error per position; meaningless for those removed since the last update."""
        weights = self.weights.reshape(-1, self.taps, self.weights.shape[1])
        outer = weights @ weights.transpose(0, 2, 1)  # Q_c Q_cᵀ, (positions, taps, taps)
        solved = np.linalg.solve(self.blocks, outer)
        rises: np.ndarray = self.weight * np.einsum("cii->c", solved)
        return rises

    def remove(self, slot: int) -> None:
        """Take the position in `slot` out of H's blocks and Q; H itself follows at the next update."""
        rows = slice(slot * self.taps, (slot + 1) * self.taps)
        panel = self.inverse[:, rows] - self.pending @ self.pending[rows].T  # H_now[:, c]
        factor = cholesky(panel[rows], lower=True, check_finite=False)
        panel = solve_triangular(factor, panel.T, lower=True, check_finite=False).T
        self.weights -= panel @ solve_triangular(factor, self.weights[rows], lower=True, check_finite=False)
        groups = panel.reshape(-1, self.taps, self.taps)
        self.blocks -= groups @ groups.transpose(0, 2, 1)
        self.blocks[slot] = np.eye(self.taps)  # keeps the batch of solves regular
        self.weights[rows] = 0.0
        self.pending = np.asfortranarray(np.hstack([self.pending, panel]))

    def update(self, alive: np.ndarray) -> None:
        """Apply the pending updates and drop the removed positions; `alive` marks the slots that stay."""
        current = dgemm(-1.0, self.pending, self.pending, beta=1.0, c=self.inverse, trans_b=True, overwrite_c=True)
        columns = np.flatnonzero(np.repeat(alive, self.taps))
        self.inverse = current.T[np.ix_(columns, columns)].T  # one copy, in Fortran order again
        self.weights, self.blocks = self.weights[columns], self.blocks[alive]
        self.pending = np.zeros((len(self.inverse), 0), order="F")


def diagonal_blocks(matrix: np.ndarray, taps: int) -> np.ndarray:
    """Copies of the diagonal blocks, (positions, taps, taps)."""
    positions = len(matrix) // taps
    blocks = matrix.reshape(positions, taps, positions, taps)
    each = np.arange(positions)
    return np.array(blocks[each, :, each, :])


def eliminate(problem: Problem, ridge: float = DEFAULT_RIDGE, *, ridge_is_safe: bool = False) -> Elimination:
    """Remove one position after the other, each time the one whose loss costs least, down to none.

    Ties (dead or duplicate channels) go to the lower position. Memory: the inverse of every consumer's Gram and
    one copy at a time.

    Args:
        problem: consumers of one channel group; their relative errors are averaged.
        ridge: relative to each channel's mean diagonal, raised by powers of ten where a Gram needs it.
        ridge_is_safe: it comes from `safe_ridge`, which need not be asked again.
    """
    positions = check_problem(problem)
    ridge = ridge if ridge_is_safe else safe_ridge(problem, ridge)
    order = _removals(problem, np.arange(positions), positions, ridge)
    return Elimination(order, chain_errors(problem, order[::-1], ridge), ridge)


def shrink(
    problem: Problem, support: Int64[np.ndarray, " kept"], removals: int, ridge: float = DEFAULT_RIDGE
) -> Int64[np.ndarray, " kept"]:
    """A support with the positions that backward elimination would remove from it first at the end.

    Its first len(support) − r entries are what is left after r removals, for r up to `removals`; those are sorted.

    Args:
        support: sorted positions.
        ridge: relative to each channel's mean diagonal; one that `safe_ridge` accepts.
    """
    removed = _removals(problem, np.asarray(support, dtype=np.int64), min(removals, len(support)), ridge)
    return np.append(np.setdiff1d(support, removed), removed[::-1])


def _removals(problem: Problem, slots: np.ndarray, removals: int, ridge: float) -> np.ndarray:
    """The first positions to leave, in order; `slots` holds those that are in."""
    consumers = [
        _Consumer(regression, weight, ridge, slots)
        for regression, weight in zip(problem, loss_weights(problem), strict=True)
        if weight > 0 and removals
    ]
    if not consumers:
        return slots[:removals]
    order: list[int] = []
    alive = np.ones(len(slots), dtype=bool)
    inverted = len(slots)
    while len(order) < removals:
        scores = np.where(alive, sum(consumer.scores() for consumer in consumers), np.inf)
        slot = int(np.argmin(scores))
        order.append(int(slots[slot]))
        alive[slot] = False
        for consumer in consumers:
            consumer.remove(slot)
        left = int(alive.sum())
        if left and (len(slots) - left >= _REMOVALS_PER_UPDATE or left <= _REINVERT_BELOW * inverted):
            slots = slots[alive]
            for consumer in consumers:
                consumer.invert(slots) if left <= _REINVERT_BELOW * inverted else consumer.update(alive)
            inverted = left if left <= _REINVERT_BELOW * inverted else inverted
            alive = np.ones(left, dtype=bool)
    return np.array(order, dtype=np.int64)
