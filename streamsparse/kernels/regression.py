"""Least squares on second moments: one consumer of a channel group, and the several that share its channels.

A layer with C input positions, K taps and M outputs regresses responses y_t (M,) on columns x_t (C·K,). All that
is needed of T patches are the centred second moments G = XᵀX/T, B = XᵀY/T and tr(YᵀY)/T; every number below
follows from them exactly (normal equations), for a training or for a held-out fold alike.

Ridge. Each channel's diagonal gets `ridge` times that channel's own mean diagonal (Marquardt's scaling, J. SIAM 11,
1963), so solutions and selections do not depend on the units of any channel. The *training error* of a support is
the minimum of the refit's objective, (‖residual‖² + ridge term) / power: it never rises when a channel is added,
and it exceeds the residual's part by the ridge term only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from streamsparse.errors import StatisticsError
from streamsparse.kernels.least_squares import DEFAULT_RIDGE, ridge_solution

_DEAD_CHANNEL = 1e-28  # of the largest channel's power: beyond what scales of 1e±6 can produce
_CHECKED_AT_ONCE = 256  # rows and columns
_SYMMETRY_TOLERANCE = 1e-5  # of the largest entry: admits Grams accumulated in float32


@dataclass(frozen=True, eq=False)
class Regression:
    """Centred second moments of one consumer, divided by the number of patches.

    Attributes:
        gram: G = XᵀX/T (C·K, C·K), symmetric, kept as float64; columns c·K to (c+1)·K belong to position c.
        cross: B = XᵀY/T (C·K, M), kept as float64.
        power: tr(YᵀY)/T, the error of predicting the mean.
        taps: K, columns per position.

    Raises:
        StatisticsError: wrong shapes, values that are not finite, a Gram that is not symmetric or has a negative
            diagonal, a negative power, or moments that violate the Cauchy–Schwarz inequality (one of them
            was not centred, or not divided by the count).
    """

    gram: Float[np.ndarray, "columns columns"]
    cross: Float[np.ndarray, "columns outputs"]
    power: float
    taps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "gram", np.asarray(self.gram, dtype=np.float64))
        object.__setattr__(self, "cross", np.asarray(self.cross, dtype=np.float64))
        object.__setattr__(self, "power", float(self.power))
        _check_shapes(self.gram, self.cross, self.taps)
        _check_values(self.gram, self.cross, self.power)

    @property
    def positions(self) -> int:
        """C, the number of positions (channels) to choose from."""
        return len(self.gram) // self.taps

    @property
    def outputs(self) -> int:
        """M, the number of responses."""
        return int(self.cross.shape[1])


Problem = tuple[Regression, ...]
"""One channel group: its consumers' regressions, all with the same number of positions."""

Support = Int64[np.ndarray, " kept"]
"""Sorted positions that are kept."""


def _check_shapes(gram: np.ndarray, cross: np.ndarray, taps: int) -> None:
    square = gram.ndim == 2 and gram.shape[0] == gram.shape[1]
    if not square or cross.ndim != 2 or cross.shape[0] != gram.shape[0] or cross.shape[1] == 0:
        raise StatisticsError(
            "The moments of a regression do not fit together.",
            expected="gram (columns, columns) and cross (columns, outputs) with at least one output",
            got=f"gram {gram.shape}, cross {cross.shape}",
        )
    if taps < 1 or gram.shape[0] == 0 or gram.shape[0] % taps:
        raise StatisticsError(
            "The columns do not divide into positions.",
            expected="a positive multiple of the taps",
            got=f"{gram.shape[0]} columns, {taps} taps",
        )


def _check_values(gram: np.ndarray, cross: np.ndarray, power: float) -> None:
    if not (np.isfinite(gram).all() and np.isfinite(cross).all() and np.isfinite(power)):
        raise StatisticsError(
            "A regression's moments hold NaN or infinite values.",
            expected="finite numbers",
            remedy="check the activations for overflow and accumulate again",
        )
    diagonal = gram.diagonal()
    scale = max(float(gram.max()), -float(gram.min()))
    asymmetry = _asymmetry(gram)
    if asymmetry > _SYMMETRY_TOLERANCE * scale or diagonal.min() < -_SYMMETRY_TOLERANCE * scale:
        raise StatisticsError(
            "The Gram matrix is not that of real data.",
            expected="a symmetric matrix with a nonnegative diagonal",
            got=f"asymmetry {asymmetry:.3g}, smallest diagonal {diagonal.min():.3g}, largest entry {scale:.3g}",
        )
    if power < 0:
        raise StatisticsError("The power of the responses is negative.", expected="at least 0", got=power)
    bound = power * (1.02 * np.maximum(diagonal, 0) + _SYMMETRY_TOLERANCE * scale)
    explained = np.square(cross).sum(axis=1)
    if power > 0 and (explained > bound).any():
        column = int(np.argmax(explained - bound))
        raise StatisticsError(
            "Gram, cross and power contradict each other.",
            expected="‖cross‖² ≤ gram · power in every column, as for moments of the same centred patches",
            got=f"{explained[column]:.3g} > {diagonal[column]:.3g} · {power:.3g}",
            where=f"column {column}",
            remedy="centre all three and divide each by the number of patches",
        )


def _asymmetry(gram: np.ndarray) -> float:
    """Largest |G − Gᵀ|, block by block: no copy of a large Gram, and no walk along its columns."""
    greatest = 0.0
    for row in range(0, len(gram), _CHECKED_AT_ONCE):
        for column in range(0, row + 1, _CHECKED_AT_ONCE):
            rows, columns = slice(row, row + _CHECKED_AT_ONCE), slice(column, column + _CHECKED_AT_ONCE)
            greatest = max(greatest, float(np.abs(gram[rows, columns] - gram[columns, rows].T).max()))
    return greatest


def check_problem(problem: Problem) -> int:
    """The number of positions that all regressions of a channel group share.

    Raises:
        StatisticsError: no regression, or different numbers of positions.
    """
    positions = {regression.positions for regression in problem}
    if len(positions) != 1:
        raise StatisticsError(
            "A channel group needs regressions over the same positions.",
            expected="at least one regression, all with equal positions",
            got=sorted(positions),
        )
    return positions.pop()


def loss_weights(problem: Problem) -> tuple[float, ...]:
    """Weight of each consumer's squared error, so that the sum is the mean of the relative errors.

    A consumer with constant responses (power 0) is predicted exactly by its mean: weight 0, not counted.
    """
    counted = sum(regression.power > 0 for regression in problem)
    return tuple(1 / (regression.power * counted) if regression.power > 0 else 0.0 for regression in problem)


def columns_of(positions: Iterable[int] | np.ndarray, taps: int) -> Int64[np.ndarray, " columns"]:
    """The columns of these positions, in their order: position c has c·taps to (c+1)·taps."""
    start = np.asarray(positions if isinstance(positions, np.ndarray) else list(positions), dtype=np.int64)
    columns: np.ndarray = (start[:, None] * taps + np.arange(taps)).ravel()
    return columns


def ridge_penalty(regression: Regression, ridge: float) -> Float64[np.ndarray, " columns"]:
    """What the ridge adds to G's diagonal: `ridge` times the mean diagonal of the column's own channel.

    Dead channels have no scale of their own and get the largest channel's, so G plus the penalty is never
    singular for a reason that does not matter.
    """
    scale = regression.gram.diagonal().reshape(-1, regression.taps).mean(axis=1)
    largest = float(scale.max())
    reference = largest if largest > 0 else 1.0
    alive = np.where(scale > _DEAD_CHANNEL * reference, scale, reference)
    return np.repeat(ridge * alive, regression.taps)


def refit(
    regression: Regression,
    support: Int64[np.ndarray, " kept"],
    ridge: float = DEFAULT_RIDGE,
    towards: Float64[np.ndarray, "outputs columns"] | None = None,
) -> Float64[np.ndarray, "outputs kept_columns"]:
    """The least-squares weights on the columns of `support`, with the channel-relative ridge.

    argmin_Q ‖Y − X_S Qᵀ‖² + Σ_c ridge_c ‖Q_c − P_c‖², P = `towards` on the kept columns: (G_SS + ridge)⁻¹
    (B_S − G_SS P_Sᵀ) is added to P. With the layer's own weights for P, what few patches cannot tell stays so.

    Args:
        support: kept positions, in the order the columns are wanted in.
        ridge: relative to each channel's mean diagonal; see the module's first lines.
        towards: weights on all columns, before any was removed; None for 0.

    Returns:
        Q (M, k·K); the bias that belongs to it is ȳ − Q x̄ on the same columns.
    """
    columns = columns_of(support, regression.taps)
    if not columns.size:
        return np.zeros((regression.outputs, 0))
    penalty = ridge_penalty(regression, ridge)[columns]
    gram, cross = regression.gram[np.ix_(columns, columns)], regression.cross[columns]
    if towards is None:
        return ridge_solution(gram, cross, penalty).T
    start = towards[:, columns]
    fitted: np.ndarray = start + ridge_solution(gram, cross - gram @ start.T, penalty).T
    return fitted


def relative_error(
    regression: Regression,
    support: Int64[np.ndarray, " kept"],
    weights: Float64[np.ndarray, "outputs kept_columns"],
) -> float:
    """Mean squared residual of y ≈ Q x over the power of y, from the moments of any fold.

    (power − 2⟨Q, Bᵀ⟩ + ⟨Q G, Q⟩) / power; round-off below 0 is returned as 0. Constant responses (power 0)
    have error 0: their mean predicts them.
    """
    if regression.power == 0:
        return 0.0
    columns = columns_of(support, regression.taps)
    fitted = weights @ regression.gram[np.ix_(columns, columns)] - 2 * regression.cross[columns].T
    return max(0.0, 1.0 + float(np.vdot(fitted, weights)) / regression.power)


def restricted(regression: Regression, support: Int64[np.ndarray, " kept"]) -> Regression:
    """The regression on some positions alone."""
    columns = columns_of(support, regression.taps)
    gram = regression.gram[np.ix_(columns, columns)]
    return Regression(gram, regression.cross[columns], regression.power, regression.taps)


def chain_errors(
    problem: Problem, order: Int64[np.ndarray, " ranked"], ridge: float = DEFAULT_RIDGE
) -> Float64[np.ndarray, " ranked_plus_1"]:
    """Training errors of the nested supports order[:0], order[:1], ..., order[:len(order)].

    One Cholesky factorisation per consumer serves all of them: with L Lᵀ = G + ridge in the given order, the
    first k blocks of L⁻¹B hold what the first k channels explain.
    """
    errors = np.full(len(order) + 1, 0.0 if not any(loss_weights(problem)) else 1.0)
    for regression, weight in zip(problem, loss_weights(problem), strict=True):
        if weight == 0 or not len(order):
            continue
        columns = columns_of(order, regression.taps)
        system = regression.gram[np.ix_(columns, columns)]
        system[np.diag_indices_from(system)] += ridge_penalty(regression, ridge)[columns]
        # Symmetric, and in Fortran order: factorised in place.
        factor = cholesky(system.T, lower=True, overwrite_a=True, check_finite=False)
        whitened = solve_triangular(factor, regression.cross[columns], lower=True, check_finite=False)
        explained = np.square(whitened).reshape(len(order), -1).sum(axis=1)
        errors[1:] -= weight * np.cumsum(explained)
    clipped: np.ndarray = np.maximum(errors, 0.0)
    return clipped


def support_error(problem: Problem, support: Int64[np.ndarray, " kept"], ridge: float = DEFAULT_RIDGE) -> float:
    """Training error of one support: the mean over the consumers of the refit's objective over its power."""
    return float(chain_errors(problem, np.asarray(support, dtype=np.int64), ridge)[-1])


def safe_ridge(problem: Problem, ridge: float = DEFAULT_RIDGE) -> float:
    """The smallest of ridge, 10·ridge, 100·ridge, ... with which every Gram is safely positive definite.

    Moments in float32, or cancelled by centring, can have eigenvalues below 0 that exceed the asked ridge.
    """
    check_problem(problem)
    ridge = max(ridge, 1e-12)
    while not all(_is_positive(regression, ridge) for regression in problem):
        ridge *= 10
        if ridge > 1:
            raise StatisticsError(
                "The Gram matrix is far from positive semidefinite.",
                expected="eigenvalues of at least 0 up to round-off",
                remedy="accumulate in float64, and centre with the same patches that the sums run over",
            )
    return ridge


def _is_positive(regression: Regression, ridge: float) -> bool:
    penalty = ridge_penalty(regression, ridge)
    system = np.array(regression.gram)
    system[np.diag_indices_from(system)] += penalty
    try:
        factor = cholesky(system.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return False
    return bool((np.square(factor.diagonal()) >= 0.1 * penalty).all())
