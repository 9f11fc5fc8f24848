"""Least squares on second moments as plain arrays: solutions that no singular Gram can upset.

Notation: G = XᵀX/T (columns, columns), B = XᵀY/T (columns, outputs), weights Qᵀ = (G + ridge)⁻¹ B.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.linalg import LinAlgError, cho_solve, cholesky, eigh

DEFAULT_RIDGE = 1e-8
"""Relative to a channel's own mean diagonal: far above round-off in float64, far below any useful error."""

_EXPLAINED = 1e-5
"""Of a column's own power: what the context leaves of less is round-off where products were single precision."""

_ROUND_OFF_SPREAD = 4.0


def ridge_solution(
    gram: Float64[np.ndarray, "columns columns"],
    cross: Float64[np.ndarray, "columns outputs"],
    ridge: float | Float64[np.ndarray, " columns"],
) -> Float64[np.ndarray, "columns outputs"]:
    """Solve (G + diag(ridge)) X = B by Cholesky.

    A numerically singular system gets the solution of least norm (in units of the columns' own scales): the
    eigenvalues below round-off are cut. Deterministic.

    Args:
        gram: symmetric positive semidefinite up to round-off.
        cross: right-hand sides.
        ridge: added to the diagonal, in units of the Gram.
    """
    system = np.array(gram)
    system[np.diag_indices_from(system)] += ridge
    factor = _well_conditioned_factor(system)
    if factor is None:
        return truncated_solution(system, cross)
    solution: np.ndarray = cho_solve((factor, True), cross, check_finite=False)
    return solution


def _well_conditioned_factor(system: np.ndarray) -> np.ndarray | None:
    """Lower Cholesky factor, or None when a pivot is lost in the round-off of its diagonal."""
    try:
        factor: np.ndarray = cholesky(system, lower=True, check_finite=False)
    except LinAlgError:
        return None
    lost = len(system) * np.finfo(np.float64).eps * system.diagonal()
    return None if (np.square(factor.diagonal()) <= lost).any() else factor


def truncated_solution(
    system: Float64[np.ndarray, "columns columns"], cross: Float64[np.ndarray, "columns outputs"]
) -> Float64[np.ndarray, "columns outputs"]:
    """The solution of least norm of a singular or slightly indefinite system, eigenvalues in round-off cut.

    Negative eigenvalues are round-off and tell its size: whatever is not `_ROUND_OFF_SPREAD` times larger is cut.
    """
    diagonal = system.diagonal()
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    values, vectors = eigh(system * scale[:, None] * scale, check_finite=False)
    least = len(system) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    kept = values > max(least, -_ROUND_OFF_SPREAD * values[0])
    basis = scale[:, None] * vectors[:, kept]
    solution: np.ndarray = basis @ ((basis.T @ cross) / values[kept, None])
    return solution


@dataclass(frozen=True, eq=False)
class ContextFit:
    """Least squares on columns that always stay.

    Attributes:
        rest: weights for the other columns, (kept, rest).
        responses: for the responses, (kept, outputs).
    """

    rest: Float64[np.ndarray, "kept rest"]
    responses: Float64[np.ndarray, "kept outputs"]


def context_fit(
    gram: Float64[np.ndarray, "columns columns"],
    cross: Float64[np.ndarray, "columns outputs"],
    kept_columns: Int64[np.ndarray, " kept"],
    ridge: float = DEFAULT_RIDGE,
) -> ContextFit:
    """Regress the other columns and the responses on those that stay.

    Args:
        ridge: relative to the kept columns' own diagonal.
    """
    rest = np.setdiff1d(np.arange(len(gram)), kept_columns)
    context = gram[np.ix_(kept_columns, kept_columns)]
    diagonal = context.diagonal()
    penalty = ridge * np.where(diagonal > 0, diagonal, max(float(gram.diagonal().max()), 1.0))
    both = ridge_solution(context, np.hstack([gram[np.ix_(kept_columns, rest)], cross[kept_columns]]), penalty)
    return ContextFit(both[:, : len(rest)], both[:, len(rest) :])


def without_context(
    gram: Float64[np.ndarray, "columns columns"],
    cross: Float64[np.ndarray, "columns outputs"],
    power: float,
    kept_columns: Int64[np.ndarray, " kept"],
    weights: Float64[np.ndarray, "outputs kept"],
) -> tuple[Float64[np.ndarray, "columns outputs"], float]:
    """Cross moments and power of what is left of the responses without these weights of the columns that stay.

    A context that is fitted to that is shrunk towards `weights`. What is less than 1e-5 of the power is round-off:
    0, and so are its cross moments.
    """
    explained = gram[:, kept_columns] @ weights.T  # (columns, outputs)
    left = power - float(np.vdot(2 * cross[kept_columns] - explained[kept_columns], weights.T))
    if left <= _EXPLAINED * power:
        return np.zeros_like(cross), 0.0
    return cross - explained, left


def partial_out(
    gram: Float64[np.ndarray, "columns columns"],
    cross: Float64[np.ndarray, "columns outputs"],
    power: float,
    kept_columns: Int64[np.ndarray, " kept"],
    fit: ContextFit | None = None,
) -> tuple[Float64[np.ndarray, "rest rest"], Float64[np.ndarray, "rest outputs"], float]:
    """Moments of what remains to be explained when some columns always stay (the Schur complement).

    The channels of other groups in one consumer's input are context: regressing both sides on them first leaves
    a standard problem over the remaining columns, in their old order, with the same optimal errors
    (Frisch–Waugh–Lovell). `power` becomes the error that the context alone leaves, in the same units. Of what the
    context explains but for 1e-5 of its power nothing remains, columns and responses alike: their moments are 0.
    Of what is little more than round-off the cross moments are scaled down to what gram and power allow.

    Args:
        fit: of these moments, if it is known already.
    """
    fit = fit or context_fit(gram, cross, kept_columns)
    rest = np.setdiff1d(np.arange(len(gram)), kept_columns)
    bridge = gram[np.ix_(kept_columns, rest)]  # (kept, rest)
    remaining = gram[np.ix_(rest, rest)] - bridge.T @ fit.rest
    remaining_cross = cross[rest] - bridge.T @ fit.responses
    remaining_power = power - float(np.vdot(cross[kept_columns], fit.responses))
    return _without_round_off(remaining, remaining_cross, remaining_power, gram.diagonal()[rest], power)


def residual_moments(
    gram: Float64[np.ndarray, "columns columns"],
    cross: Float64[np.ndarray, "columns outputs"],
    power: float,
    kept_columns: Int64[np.ndarray, " kept"],
    fit: ContextFit,
) -> tuple[Float64[np.ndarray, "rest rest"], Float64[np.ndarray, "rest outputs"], float]:
    """Moments of what a fit to *other* rows leaves of these: a held-out fold has no part in its own context.

    With A, Y the fit's weights on context c: G' = G_rr - AᵀG_cr - G_rcA + AᵀG_ccA, B' = B_r - AᵀB_c -
    (G_rc - AᵀG_cc)Y, and the power the context's own held-out error. Equal to `partial_out` on the rows that the
    fit was made to, but for the ridge. Of what is nearly explained nothing remains, as there.

    Args:
        gram, cross, power: about the means of the rows that `fit` was made to.
    """
    rest = np.setdiff1d(np.arange(len(gram)), kept_columns)
    bridge, context = gram[np.ix_(kept_columns, rest)], gram[np.ix_(kept_columns, kept_columns)]
    unexplained = bridge - context @ fit.rest  # (kept, rest)
    remaining = gram[np.ix_(rest, rest)] - fit.rest.T @ bridge - unexplained.T @ fit.rest
    remaining_cross = cross[rest] - fit.rest.T @ cross[kept_columns] - unexplained.T @ fit.responses
    remaining_power = power - 2 * float(np.vdot(fit.responses, cross[kept_columns]))
    remaining_power += float(np.vdot(fit.responses, context @ fit.responses))
    return _without_round_off(remaining, remaining_cross, remaining_power, gram.diagonal()[rest], power)


def _without_round_off(
    remaining: np.ndarray, remaining_cross: np.ndarray, remaining_power: float, diagonal: np.ndarray, power: float
) -> tuple[np.ndarray, np.ndarray, float]:
    varies = remaining.diagonal() > _EXPLAINED * diagonal
    remaining *= varies[:, None] & varies
    if remaining_power <= _EXPLAINED * power:
        return np.zeros_like(remaining), np.zeros_like(remaining_cross), 0.0
    remaining_cross *= varies[:, None]
    found = np.sqrt(np.square(remaining_cross).sum(axis=1))
    most = np.sqrt(np.maximum(remaining.diagonal(), 0.0) * remaining_power)  # Cauchy–Schwarz
    remaining_cross *= np.minimum(1.0, most / np.maximum(found, np.finfo(np.float64).tiny))[:, None]
    return (remaining + remaining.T) / 2, remaining_cross, remaining_power
