"""The two steps of sparse entropic regression on second moments, and its loss.

Source: T. Barisin, I. Horenko, "Towards Generalized Entropic Sparsification for Convolutional Neural Networks",
arXiv:2404.04734, section 2.3 and appendix C. With w a probability vector over the C channels and
D = diag(w ⊗ 1_K), one consumer's loss is

    L(w, Λ) = ‖Y − X D Λᵀ‖² / (T σ²)  +  ε_L2 (γ/σ²) ‖Λ‖²  +  ε_H H(w),      H(w) = −Σ w_c log w_c

where σ² is the power of the responses and γ = tr(G)/n the mean power of a column: both ε are then free of the
units of responses and inputs. Several consumers share one w; the first two terms are averaged over them.

W-step: (D G D + ε_L2 γ I) Λᵀ = D B, for the channels with w_c > 0. w-step: with Λ fixed the loss is
wᵀA w − 2bᵀw + ε_H H(w) + const; linearising the concave entropy (gradient −log w − 1) leaves a convex quadratic
program on the simplex (the convex–concave procedure, Yuille and Rangarajan 2003), which never raises the loss.
A channel whose weight reaches 0 stays out.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.linalg import LinAlgError, cho_solve, cholesky

from streamsparse.kernels.least_squares import truncated_solution
from streamsparse.kernels.regression import Problem, Regression, columns_of, loss_weights
from streamsparse.kernels.simplex import Quadratic, minimise_on_simplex

Lambdas = tuple[Float64[np.ndarray, "_ _"], ...]
"""Λ of every consumer, each (outputs, columns)."""

_CONCAVE_STEPS = 50
_ROWS_AT_ONCE = 1024


def entropy(w: Float64[np.ndarray, " positions"]) -> float:
    """Shannon's H(w) = −Σ w log w in nats, with 0 log 0 = 0 (equation 1)."""
    positive = w[w > 0]
    return float(-(positive * np.log(positive)).sum())


def column_power(regression: Regression) -> float:
    """γ, the mean power of a column; 1 if all channels are dead."""
    mean = float(regression.gram.diagonal().mean())
    return mean if mean > 0 else 1.0


def loss(
    problem: Problem, w: Float64[np.ndarray, " positions"], lambdas: Lambdas, eps_l2: float, eps_h: float
) -> float:
    """The loss L(w, Λ) of the module's first lines (the paper's equation 6)."""
    total = eps_h * entropy(w)
    for regression, weight, scaled in zip(problem, loss_weights(problem), lambdas, strict=True):
        weights = scaled * np.repeat(w, regression.taps)  # Q = Λ D, equation 7
        residual = regression.power + float(np.vdot(weights @ regression.gram - 2 * regression.cross.T, weights))
        penalty = eps_l2 * column_power(regression) * float(np.vdot(scaled, scaled))
        total += weight * (residual + penalty)
    return total


def weight_step(problem: Problem, w: Float64[np.ndarray, " positions"], eps_l2: float) -> Lambdas:
    """The W-step: the ridge solution Λ of every consumer for fixed channel weights (appendix C.1).

    Only channels with w > 0 take part, so it gets cheaper as channels leave.
    """
    return tuple(_scaled_weights(regression, w, eps_l2) for regression in problem)


def _scaled_weights(regression: Regression, w: np.ndarray, eps_l2: float) -> np.ndarray:
    columns = columns_of(np.flatnonzero(w > 0), regression.taps)
    scale = np.repeat(w[w > 0], regression.taps)
    right = regression.cross[columns]
    right *= scale[:, None]
    system = ridge_system(regression, columns, scale, eps_l2)
    try:
        factor = cholesky(system.T, lower=True, overwrite_a=True, check_finite=False)
        solution = cho_solve((factor, True), right, overwrite_b=True, check_finite=False)
    except LinAlgError:  # eigenvalues below 0 that exceed ε_L2: a Gram in float32, or a vanishing ε_L2
        solution = truncated_solution(ridge_system(regression, columns, scale, eps_l2), right)
    scaled = np.zeros_like(regression.cross.T)
    scaled[:, columns] = solution.T
    return scaled


def ridge_system(regression: Regression, columns: np.ndarray, scale: np.ndarray, eps_l2: float) -> np.ndarray:
    """D G D + ε_L2 γ I on the active columns."""
    system: np.ndarray = regression.gram[np.ix_(columns, columns)]
    system *= scale[:, None]
    system *= scale
    system[np.diag_indices_from(system)] += eps_l2 * column_power(regression)
    return system


def reduced_loss(problem: Problem, w: Float64[np.ndarray, " positions"], lambdas: Lambdas, eps_h: float) -> float:
    """The loss right after a W-step, min over Λ of L(w, Λ): there it is σ² − ⟨Λ D, Bᵀ⟩ for every consumer.

    Costs one pass over Λ, not a product with the Gram; equal to `loss` for the Λ of `weight_step` only.
    """
    total = eps_h * entropy(w)
    for regression, weight, scaled in zip(problem, loss_weights(problem), lambdas, strict=True):
        by_column = (scaled.T * regression.cross).sum(axis=1, dtype=np.float64)
        total += weight * (regression.power - float(by_column @ np.repeat(w, regression.taps)))
    return total


def channel_quadratic(problem: Problem, lambdas: Lambdas, active: np.ndarray) -> Quadratic:
    """The data term as wᵀA w − 2bᵀw over the active channels (appendix C.2).

    A_gh sums the (g, h) block of G ∘ (ΛᵀΛ), b_g the g block of Λᵀ ∘ B; weighted over the consumers.
    """
    matrix = np.zeros((len(active), len(active)))
    vector = np.zeros(len(active))
    for regression, weight, scaled in zip(problem, loss_weights(problem), lambdas, strict=True):
        if weight == 0:
            continue
        taps, columns = regression.taps, columns_of(active, regression.taps)
        compact = np.ascontiguousarray(scaled[:, columns])  # (outputs, active·taps)
        step = max(1, _ROWS_AT_ONCE // taps)
        for first in range(0, len(active), step):
            rows = slice(first * taps, (first + step) * taps)
            products = compact[:, rows].T @ compact
            products *= regression.gram[np.ix_(columns[rows], columns)]
            by_channel = products.reshape(-1, taps, len(active), taps).sum(axis=(1, 3))
            matrix[first : first + step] += weight * by_channel
        aligned = (compact.T * regression.cross[columns]).sum(axis=1)
        vector += weight * aligned.reshape(-1, taps).sum(axis=1)
    return Quadratic((matrix + matrix.T) / 2, vector)


def channel_step(
    problem: Problem, w: Float64[np.ndarray, " positions"], lambdas: Lambdas, eps_h: float
) -> Float64[np.ndarray, " positions"]:
    """The w-step: lower the loss over the simplex for fixed Λ (appendix C.2).

    Convex–concave: every inner program is convex and starts from its predecessor's solution; a step that does
    not lower the loss is not taken.
    """
    active = np.flatnonzero(w > 0)
    quadratic = channel_quadratic(problem, lambdas, active)
    current = w[active]
    value = quadratic.value(current) + eps_h * entropy(current)
    for _ in range(_CONCAVE_STEPS if eps_h > 0 else 1):
        candidate = _linearised_step(quadratic, current, eps_h)
        candidate_value = quadratic.value(candidate) + eps_h * entropy(candidate)
        if candidate_value >= value:
            break
        settled = value - candidate_value <= 1e-9 * (abs(value) + abs(candidate_value))
        current, value = candidate, candidate_value
        if settled:
            break
    result = np.zeros_like(w)
    result[active] = current
    return result


def _linearised_step(quadratic: Quadratic, w: np.ndarray, eps_h: float) -> np.ndarray:
    """One convex program: the entropy replaced by its tangent at w, on the channels that are still in."""
    alive = np.flatnonzero(w > 0)
    slope = -eps_h * (np.log(w[alive]) + 1)
    tangent = Quadratic(quadratic.matrix[np.ix_(alive, alive)], quadratic.vector[alive] - slope / 2)
    result = np.zeros_like(w)
    result[alive] = minimise_on_simplex(tangent, w[alive])
    return result
