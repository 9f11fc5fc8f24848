"""Local search on supports: swap one kept channel for a dropped one as long as the training error falls.

Every pair is scored exactly without a refit. With S the support, H = (G_SS + ridge)⁻¹, Q = H B_S and
W = H G_SD, removing a costs tr(Q_aᵀ H_aa⁻¹ Q_a); adding b afterwards gains tr(F_bᵀ Z_b⁻¹ F_b) with

    T = H_aa⁻¹ W_ab      Z_b = G_bb + ridge − G_bS W_b + W_abᵀ T      F_b = B_b − G_bS Q + Tᵀ Q_a

(block inverse formulas). Only F_b F_bᵀ is needed, so a pair costs K×K products whatever the number of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from streamsparse.kernels.elimination import diagonal_blocks, inverse
from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.regression import (
    Problem,
    Regression,
    check_problem,
    columns_of,
    loss_weights,
    ridge_penalty,
    safe_ridge,
    support_error,
)

_SWAPS_AT_ONCE = 8
_RELATIVE_GAIN = 1e-6  # of the current error: smaller improvements are not worth a swap


class _Neighbourhood:
    """One consumer's exact costs of removing, adding and swapping around a support."""

    def __init__(
        self, regression: Regression, weight: float, support: np.ndarray, dropped: np.ndarray, ridge: float
    ) -> None:
        taps, gram, cross = regression.taps, regression.gram, regression.cross
        penalty = ridge_penalty(regression, ridge)
        kept, out = columns_of(support, taps), columns_of(dropped, taps)
        system = gram[np.ix_(kept, kept)]
        system[np.diag_indices_from(system)] += penalty[kept]
        inverted = inverse(system) if len(kept) else system
        bridge = gram[np.ix_(kept, out)]
        weights = inverted @ cross[kept]  # Q, (kept columns, outputs)
        residual = cross[out] - bridge.T @ weights  # (dropped columns, outputs)
        self.weight, self.taps = weight, taps
        self.weights, self.residual = weights, residual
        self.response = inverted @ bridge  # W, (kept columns, dropped columns)
        self.inverse_blocks = diagonal_blocks(inverted, taps)  # H_aa
        self.weight_outer = _outer_blocks(weights, taps)  # Q_a Q_aᵀ
        self.residual_outer = _outer_blocks(residual, taps)
        self.schur = _schur_blocks(gram, penalty, out, bridge, self.response, taps)

    def removal_costs(self) -> np.ndarray:
        """Rise of the weighted error per kept position."""
        return self.weight * _traces(self.inverse_blocks, self.weight_outer)

    def addition_gains(self) -> np.ndarray:
        """Fall of the weighted error per dropped position, nothing removed."""
        return self.weight * _traces(self.schur, self.residual_outer)

    def swap_gains(self, leaving: int, entering: np.ndarray) -> np.ndarray:
        """Fall of the weighted error per entering position, after `leaving` was removed."""
        taps = self.taps
        rows = slice(leaving * taps, (leaving + 1) * taps)
        columns = columns_of(entering, taps)
        response = _blocks_of_row(self.response[rows][:, columns], taps)  # W_ab, (entering, taps, taps)
        aligned = _blocks_of_row(self.weights[rows] @ self.residual[columns].T, taps)  # Q_a (B_b − G_bS Q)ᵀ
        solved = np.linalg.solve(self.inverse_blocks[leaving], response)  # T
        transposed = solved.transpose(0, 2, 1)
        schur = self.schur[entering] + response.transpose(0, 2, 1) @ solved
        mixed = transposed @ aligned
        outer = self.residual_outer[entering] + mixed + mixed.transpose(0, 2, 1)
        outer += transposed @ self.weight_outer[leaving] @ solved
        return self.weight * _traces(schur, outer)


def _schur_blocks(
    gram: np.ndarray, penalty: np.ndarray, out: np.ndarray, bridge: np.ndarray, response: np.ndarray, taps: int
) -> np.ndarray:
    """G_bb + ridge − G_bS H G_Sb of every dropped position, (dropped, taps, taps)."""
    columns = out.reshape(-1, taps)
    blocks = gram[columns[:, :, None], columns[:, None, :]]
    blocks += penalty[columns][:, :, None] * np.eye(taps)
    left = bridge.T.reshape(len(columns), taps, len(bridge))
    right = response.T.reshape(len(columns), taps, len(bridge)).transpose(0, 2, 1)
    difference: np.ndarray = blocks - left @ right
    return difference


def _outer_blocks(matrix: np.ndarray, taps: int) -> np.ndarray:
    rows = matrix.reshape(len(matrix) // taps, taps, matrix.shape[1])
    outer: np.ndarray = rows @ rows.transpose(0, 2, 1)
    return outer


def _blocks_of_row(row: np.ndarray, taps: int) -> np.ndarray:
    """(taps, positions·taps) as (positions, taps, taps)."""
    return row.reshape(taps, row.shape[1] // taps, taps).transpose(1, 0, 2)


def _traces(blocks: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """tr(block⁻¹ outer) per position."""
    traces: np.ndarray = np.einsum("cii->c", np.linalg.solve(blocks, outer))
    return traces


def _neighbourhoods(
    problem: Problem, support: np.ndarray, dropped: np.ndarray, ridge: float
) -> list[_Neighbourhood]:
    return [
        _Neighbourhood(regression, weight, support, dropped, ridge)
        for regression, weight in zip(problem, loss_weights(problem), strict=True)
        if weight > 0
    ]


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A support with what it costs to leave it by one position.

    Attributes:
        support: sorted kept positions.
        error: its training error.
        dropped: the other positions, sorted.
        removal_costs: rise of the error per kept position.
        addition_gains: fall of the error per dropped position.
    """

    support: Int64[np.ndarray, " kept"]
    error: float
    dropped: Int64[np.ndarray, " dropped"]
    removal_costs: Float64[np.ndarray, " kept"]
    addition_gains: Float64[np.ndarray, " dropped"]


@dataclass(frozen=True)
class _Swap:
    """Slots of a kept and of a dropped position, and by how much the error falls when they change places."""

    leaving: int
    entering: int
    fall: float


def exchange(
    problem: Problem,
    support: Int64[np.ndarray, " kept"],
    ridge: float = DEFAULT_RIDGE,
    max_swaps: int = 100,
    candidates: int | None = None,
) -> Int64[np.ndarray, " kept"]:
    """Take the best swaps until none lowers the training error, or some were taken `max_swaps` times.

    Args:
        support: kept positions.
        ridge: relative to each channel's mean diagonal, raised by powers of ten where a Gram needs it.
        candidates: look only at this many kept positions of least removal cost and as many dropped positions of
            greatest gain; None looks at every pair.

    Returns:
        A sorted support of the same size whose training error is no greater.
    """
    return search(problem, support, safe_ridge(problem, ridge), max_swaps, candidates).support


def search(
    problem: Problem,
    support: Int64[np.ndarray, " kept"],
    ridge: float,
    max_swaps: int = 100,
    candidates: int | None = None,
) -> Surroundings:
    """As `exchange`, for a ridge that is known to be safe, with the surroundings of where it ends."""
    positions = check_problem(problem)
    current = np.sort(np.asarray(support, dtype=np.int64))
    error = support_error(problem, current, ridge)
    for swaps_left in range(max_swaps, -1, -1):
        dropped = np.setdiff1d(np.arange(positions), current)
        around = _neighbourhoods(problem, current, dropped, ridge)
        costs = sum((each.removal_costs() for each in around), np.zeros(len(current)))
        gains = sum((each.addition_gains() for each in around), np.zeros(len(dropped)))
        here = Surroundings(current, error, dropped, costs, gains)
        swaps = _improving_swaps(here, around, candidates) if swaps_left else []
        swapped, improved = _take(problem, here, swaps, ridge)
        if improved >= error:
            break
        current, error = swapped, improved
    return here


def _take(problem: Problem, here: Surroundings, swaps: list[_Swap], ridge: float) -> tuple[np.ndarray, float]:
    """As many of the best swaps at once as together gain more than the best alone does; and the error then.

    Scoring a support's surroundings costs far more than the error of one support.
    """
    together = min(_SWAPS_AT_ONCE, len(swaps))
    while together:
        leaving = [swap.leaving for swap in swaps[:together]]
        entering = [swap.entering for swap in swaps[:together]]
        support = np.sort(np.append(np.delete(here.support, leaving), here.dropped[entering]))
        error = support_error(problem, support, ridge)
        if together == 1 or here.error - error > swaps[0].fall:
            return support, error
        together //= 2
    return here.support, here.error


def _improving_swaps(here: Surroundings, around: list[_Neighbourhood], candidates: int | None) -> list[_Swap]:
    """The best swap of every leaving position that improves the support, best first, no entering position twice."""
    if not len(here.support) or not len(here.dropped) or not around:
        return []
    leaving = np.argsort(here.removal_costs, kind="stable")[:candidates]
    entering = np.sort(np.argsort(-here.addition_gains, kind="stable")[:candidates])
    found: list[_Swap] = []
    for slot in leaving:
        gains = np.sum([each.swap_gains(int(slot), entering) for each in around], axis=0)
        winner = int(np.argmax(gains))
        fall = float(gains[winner] - here.removal_costs[slot])
        if fall > _RELATIVE_GAIN * here.error:
            found.append(_Swap(int(slot), int(entering[winner]), fall))
    found.sort(key=lambda swap: -swap.fall)
    first = {swap.entering: swap for swap in reversed(found)}
    return [swap for swap in found if first[swap.entering] is swap]
