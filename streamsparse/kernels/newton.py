"""Newton's step on the entropic loss with Λ eliminated.

Minimising L(w, Λ) over Λ leaves a function of w alone. With ρ = ε_L2 γ, S = (D G D + ρ I)⁻¹ and Λ the W-step's
solution, its derivatives on the channels with w_c > 0 are, per consumer (times its weight in the loss),

    ∂f/∂w_c      = −2 ρ ‖Λ_c‖² / w_c                                              − ε_H (log w_c + 1)
    ∂²f/∂w_c∂w_d = (6 ρ ‖Λ_c‖² δ_cd − 8 ρ² Σ_block(S ∘ ΛᵀΛ)_cd) / (w_c w_d)       − ε_H δ_cd / w_c

(differentiate Q = (G + ρ D⁻²)⁻¹ B, with Q = Λ D). The alternation crawls because Λ and w must move together; this
step moves both. The Hessian is indefinite where channels compete, so its eigenvalues are replaced by
their magnitudes (saddle-free Newton, Dauphin et al. 2014), in the coordinates log w, where they are comparable.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.linalg import LinAlgError

from streamsparse.kernels.elimination import inverse
from streamsparse.kernels.entropic_steps import Lambdas, column_power, ridge_system
from streamsparse.kernels.regression import Problem, columns_of, loss_weights
from streamsparse.kernels.simplex import Quadratic, minimise_on_simplex

_LEAST_FRACTION = 0.3  # a channel keeps at least this much of its weight: only the plain step drops channels
_LEAST_CURVATURE = 1e-4  # of the greatest


def reduced_derivatives(
    problem: Problem, w: Float64[np.ndarray, " positions"], lambdas: Lambdas, eps_l2: float, eps_h: float
) -> tuple[Float64[np.ndarray, " active"], Float64[np.ndarray, "active active"]]:
    """Gradient, and Hessian times w on both sides, of the loss with Λ eliminated.

    Args:
        w: probability vector; derivatives are taken with respect to its positive entries.
        lambdas: the W-step's solution at w.
    """
    active = np.flatnonzero(w > 0)
    gradient = -eps_h * (np.log(w[active]) + 1)
    hessian = np.diag(-eps_h * w[active])
    for regression, weight, scaled in zip(problem, loss_weights(problem), lambdas, strict=True):
        if weight == 0:
            continue
        taps, columns = regression.taps, columns_of(active, regression.taps)
        ridge = eps_l2 * column_power(regression)
        compact = np.ascontiguousarray(scaled[:, columns])
        norms = np.square(compact).sum(axis=0).reshape(-1, taps).sum(axis=1)
        coupling = inverse(ridge_system(regression, columns, np.repeat(w[active], taps), eps_l2))
        coupling *= compact.T @ compact
        by_channel = coupling.reshape(len(active), taps, len(active), taps).sum(axis=(1, 3))
        gradient -= weight * 2 * ridge * norms / w[active]
        hessian += weight * (np.diag(6 * ridge * norms) - 8 * ridge**2 * by_channel)
    return gradient, hessian


def newton_target(
    problem: Problem, w: Float64[np.ndarray, " positions"], lambdas: Lambdas, eps_l2: float, eps_h: float
) -> Float64[np.ndarray, " positions"]:
    """Where the convexified quadratic model is least, with no weight falling below a fraction of what it was.

    Costs about as much as a W-step. Where the Gram is too indefinite for an inverse, the target is w itself.
    """
    active = np.flatnonzero(w > 0)
    here = w[active]
    try:
        gradient, scaled_hessian = reduced_derivatives(problem, w, lambdas, eps_l2, eps_h)
    except LinAlgError:
        return w
    values, vectors = np.linalg.eigh((scaled_hessian + scaled_hessian.T) / 2)
    magnitudes = np.abs(values)
    if magnitudes.max() == 0:
        return w
    curvature = (vectors * np.maximum(magnitudes, _LEAST_CURVATURE * magnitudes.max())) @ vectors.T
    curvature /= here[:, None] * here
    floor = _LEAST_FRACTION * here
    room = 1 - floor.sum()  # w = floor + room · v with v on the simplex
    linear = gradient + curvature @ (floor - here)
    model = Quadratic(curvature * (room * room / 2), linear * (-room / 2))
    target = np.zeros_like(w)
    target[active] = floor + room * minimise_on_simplex(model, (here - floor) / room)
    normalised: np.ndarray = target / target.sum()
    return normalised
