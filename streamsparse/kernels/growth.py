"""Forward selection from a support: what every dropped position would add, and the best ones in turn.

With S the support, L Lᵀ = G_SS + ridge and V = L⁻¹ G_SD, adding position b lowers the training error by
tr(F_bᵀ Z_b⁻¹ F_b), where F = B_D − Vᵀ L⁻¹ B_S is the part of the cross term that S leaves unexplained and
Z_b = G_bb + ridge − V_bᵀ V_b is b's own Gram given S. No inverse is formed. Adding b for good is a downdate of Z
and F of rank K (block Cholesky on the candidates), so that each of the following choices is exact, too.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64
from scipy.linalg import cholesky, solve_triangular

from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.regression import (
    Problem,
    Regression,
    check_problem,
    columns_of,
    loss_weights,
    ridge_penalty,
)

_CANDIDATES_PER_ADDITION = 4
_FEWEST_CANDIDATES = 32


class _Residual:
    """One consumer's dropped positions given a support (mutable): Z and F of the module's first lines."""

    def __init__(
        self, regression: Regression, weight: float, support: np.ndarray, dropped: np.ndarray, ridge: float
    ) -> None:
        taps = regression.taps
        kept, out = columns_of(support, taps), columns_of(dropped, taps)
        penalty = ridge_penalty(regression, ridge)
        system = regression.gram[np.ix_(kept, kept)]
        system[np.diag_indices_from(system)] += penalty[kept]
        factor = cholesky(system.T, lower=True, overwrite_a=True, check_finite=False) if len(kept) else system
        both = np.hstack([regression.gram[np.ix_(kept, out)], regression.cross[kept]])
        if len(kept):
            both = solve_triangular(factor, both, lower=True, overwrite_b=True, check_finite=False)
        self.weight, self.taps = weight, taps
        self.regression, self.penalty, self.dropped = regression, penalty, dropped
        self.bridge = both[:, : len(out)]  # V, (kept columns, dropped columns)
        self.residual = regression.cross[out] - self.bridge.T @ both[:, len(out) :]  # F, (dropped columns, outputs)

    def gains(self) -> np.ndarray:
        """Fall of the weighted error per dropped position, (dropped,)."""
        columns = columns_of(self.dropped, self.taps).reshape(-1, self.taps)
        blocks = self.regression.gram[columns[:, :, None], columns[:, None, :]]
        blocks += self.penalty[columns][:, :, None] * np.eye(self.taps)
        left = self.bridge.T.reshape(len(columns), self.taps, len(self.bridge))
        return self.weight * _explained(blocks - left @ left.transpose(0, 2, 1), self.residual, self.taps)

    def restrict(self, slots: np.ndarray) -> None:
        """Keep these of the dropped positions alone, and form their whole Z."""
        rows, out = columns_of(slots, self.taps), columns_of(self.dropped[slots], self.taps)
        bridge = self.bridge[:, rows]
        self.gram = self.regression.gram[np.ix_(out, out)] - bridge.T @ bridge
        self.gram[np.diag_indices_from(self.gram)] += self.penalty[out]
        self.residual = self.residual[rows]

    def gains_now(self, open_slots: np.ndarray) -> np.ndarray:
        """Fall of the weighted error per candidate that is still open."""
        columns = columns_of(open_slots, self.taps).reshape(-1, self.taps)
        blocks = self.gram[columns[:, :, None], columns[:, None, :]]
        return self.weight * _explained(blocks, self.residual[columns.ravel()], self.taps)

    def add(self, slot: int) -> None:
        """Take one candidate into the support."""
        rows = slice(slot * self.taps, (slot + 1) * self.taps)
        factor = cholesky(self.gram[rows, rows], lower=True, check_finite=False)
        panel = solve_triangular(factor, self.gram[rows], lower=True, check_finite=False)
        explained = solve_triangular(factor, self.residual[rows], lower=True, check_finite=False)
        self.gram -= panel.T @ panel
        self.residual -= panel.T @ explained


def _explained(blocks: np.ndarray, residual: np.ndarray, taps: int) -> np.ndarray:
    """tr(F_bᵀ Z_b⁻¹ F_b) per position."""
    rows = residual.reshape(len(blocks), taps, residual.shape[1])
    traces: np.ndarray = np.einsum("cii->c", np.linalg.solve(blocks, rows @ rows.transpose(0, 2, 1)))
    return traces


def _residuals(problem: Problem, support: np.ndarray, dropped: np.ndarray, ridge: float) -> list[_Residual]:
    return [
        _Residual(regression, weight, support, dropped, ridge)
        for regression, weight in zip(problem, loss_weights(problem), strict=True)
        if weight > 0
    ]


def addition_gains(
    problem: Problem, support: Int64[np.ndarray, " kept"], ridge: float = DEFAULT_RIDGE
) -> Float64[np.ndarray, " positions"]:
    """By how much the training error falls when one position is added to the support; 0 for those in it.

    Args:
        ridge: relative to each channel's mean diagonal; one that `safe_ridge` accepts.
    """
    positions = check_problem(problem)
    dropped = np.setdiff1d(np.arange(positions), support)
    gains = np.zeros(positions)
    if len(dropped):
        for residual in _residuals(problem, np.asarray(support), dropped, ridge):
            gains[dropped] += residual.gains()
    return gains


def grow(
    problem: Problem, support: Int64[np.ndarray, " kept"], additions: int, ridge: float = DEFAULT_RIDGE
) -> Int64[np.ndarray, " added"]:
    """The positions that greedy forward selection adds to a support, in order.

    Each addition is the best given those before it among the candidates: the positions of greatest gain at the
    start, four times as many as are wanted and at least 32. Ties go to the lower position.

    Args:
        additions: how many; no more than there are dropped positions.
        ridge: relative to each channel's mean diagonal; one that `safe_ridge` accepts.
    """
    dropped = np.setdiff1d(np.arange(check_problem(problem)), support)
    residuals = _residuals(problem, np.asarray(support), dropped, ridge)
    if not residuals or not additions:
        return dropped[:additions]
    gains = np.sum([residual.gains() for residual in residuals], axis=0)
    most = max(_FEWEST_CANDIDATES, _CANDIDATES_PER_ADDITION * additions)
    slots = np.sort(np.argsort(-gains, kind="stable")[:most])
    for residual in residuals:
        residual.restrict(slots)
    chosen: list[int] = []
    still_open = np.arange(len(slots))
    for _ in range(additions):
        now = np.sum([residual.gains_now(still_open) for residual in residuals], axis=0)
        winner = int(still_open[np.argmax(now)])
        chosen.append(winner)
        still_open = still_open[still_open != winner]
        for residual in residuals:
            residual.add(winner)
    added: np.ndarray = dropped[slots[chosen]]
    return added
