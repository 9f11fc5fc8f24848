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
        self.response = inverted @ bridge  # W, (kept columns, dropped columns)
        self.aligned = weights @ residual.T  # Q_a (B_b − G_bS Q)ᵀ for all pairs
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
        aligned = _blocks_of_row(self.aligned[rows][:, columns], taps)
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


def exchange(
    problem: Problem,
    support: Int64[np.ndarray, " kept"],
    ridge: float = DEFAULT_RIDGE,
    max_swaps: int = 100,
    candidates: int | None = None,
) -> Int64[np.ndarray, " kept"]:
    """Take the best swap until none lowers the training error, or `max_swaps` were taken.

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
        swapped = _best_swap(here, around, candidates) if swaps_left else None
        if swapped is None or (improved := support_error(problem, swapped, ridge)) >= error:
            break
        current, error = swapped, improved
    return here


def _best_swap(here: Surroundings, around: list[_Neighbourhood], candidates: int | None) -> np.ndarray | None:
    """The support after the best of all swaps, None when no swap improves it."""
    if not len(here.support) or not len(here.dropped) or not around:
        return None
    leaving = np.argsort(here.removal_costs, kind="stable")[:candidates]
    entering = np.sort(np.argsort(-here.addition_gains, kind="stable")[:candidates])
    best, best_fall = None, _RELATIVE_GAIN * here.error
    for slot in leaving:
        gains = np.sum([each.swap_gains(int(slot), entering) for each in around], axis=0)
        winner = int(np.argmax(gains))
        if gains[winner] - here.removal_costs[slot] > best_fall:
            best_fall = float(gains[winner] - here.removal_costs[slot])
            best = np.sort(np.append(np.delete(here.support, slot), here.dropped[entering[winner]]))
    return best
