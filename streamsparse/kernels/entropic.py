"""Sparse entropic regression on second moments: the paper's alternation of W-step and w-step.

Source: T. Barisin, I. Horenko, arXiv:2404.04734, section 2.3.1. Both steps are in `entropic_steps`, which also
states the loss; here they alternate, plainly as in the paper or accelerated, and the loss never rises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from streamsparse.errors import UsageError
from streamsparse.kernels.entropic_steps import (
    Lambdas,
    channel_quadratic,
    channel_step,
    entropy,
    loss,
    reduced_loss,
    weight_step,
)
from streamsparse.kernels.newton import newton_target
from streamsparse.kernels.regression import Problem, check_problem

__all__ = [
    "EntropicResult",
    "Lambdas",
    "OnIteration",
    "alternate",
    "channel_quadratic",
    "channel_step",
    "check_start",
    "entropy",
    "loss",
    "reduced_loss",
    "weight_step",
]

OnIteration = Callable[[int, float, Float64[np.ndarray, " positions"]], None]
"""Called after every iteration with its number, the loss and the channel weights."""

_PLAIN_ITERATIONS = 4  # far from the solution the plain step picks the better channels to drop
_FRACTIONS = (1.0, 0.25)
_NO_LOSS = 1e-300


@dataclass(frozen=True, eq=False)
class EntropicResult:
    """Where the alternation stopped.

    Attributes:
        w: probability vector over the positions, (C,); zeros are removed channels.
        lambdas: Λ of every consumer, (M, C·K); columns of removed channels are 0.
        losses: the loss at the start and after every iteration; never rises.
        iterations: number of iterations taken.
        w_steps: number of W-steps (factorisations) they took, the unit of cost.
        converged: whether the last relative decrease was below the tolerance.
    """

    w: Float64[np.ndarray, " positions"]
    lambdas: Lambdas
    losses: tuple[float, ...]
    iterations: int
    w_steps: int
    converged: bool

    @property
    def support(self) -> Int64[np.ndarray, " kept"]:
        """Sorted positions with w > 0."""
        return np.flatnonzero(self.w)


def check_start(problem: Problem, start: np.ndarray | None) -> np.ndarray:
    """The start of an alternation: the given probability vector, or the paper's uniform one.

    Raises:
        UsageError: not a probability vector over the problem's positions.
    """
    positions = check_problem(problem)
    if start is None:
        return np.full(positions, 1 / positions)
    if start.shape != (positions,) or (start < 0).any() or abs(start.sum() - 1) > 1e-6:
        raise UsageError(
            "The start of the alternation is not a probability vector.",
            expected=f"{positions} nonnegative numbers with sum 1",
            got=f"shape {start.shape}, minimum {start.min():.3g}, sum {start.sum():.6g}",
        )
    return np.asarray(start / start.sum(), dtype=np.float64)


def alternate(
    problem: Problem,
    *,
    eps_l2: float,
    eps_h: float,
    start: Float64[np.ndarray, " positions"] | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-7,
    on_iteration: OnIteration | None = None,
    accelerate: bool = False,
) -> EntropicResult:
    """Alternate W-step and w-step until the loss falls by less than `tolerance`, relative to the loss.

    Accelerated, every second w-step after the first few is a Newton step on the loss with Λ eliminated
    (`newton_target`), taken only where it lowers the loss; two iterations in a row must then fall short of
    the tolerance.

    Args:
        eps_l2: ε_L2 > 0, the coarse sparsity; free of units.
        eps_h: ε_H >= 0, the fine sparsity.
        start: probability vector; uniform (1/C) if None, as in the paper.
        on_iteration: told of every iteration.
        accelerate: False is the paper's plain alternation.
    """
    if not eps_l2 > 0 or not eps_h >= 0:
        raise UsageError(
            "The hyperparameters are out of range.",
            expected="eps_l2 > 0 and eps_h >= 0",
            got=f"eps_l2 {eps_l2}, eps_h {eps_h}",
        )
    at = _at(problem, check_start(problem, start), eps_l2, eps_h)
    losses, w_steps, settled = [at.loss], 1, 0
    while len(losses) <= max_iterations and settled < (2 if accelerate else 1):
        before = at.loss
        if accelerate and len(losses) > _PLAIN_ITERATIONS and len(losses) % 2:
            at, taken = _newton_iteration(problem, at, eps_l2, eps_h)
        else:
            at, taken = _at(problem, channel_step(problem, at.w, at.lambdas, eps_h), eps_l2, eps_h), 1
        w_steps += taken
        losses.append(at.loss)
        if on_iteration is not None:
            on_iteration(len(losses) - 1, at.loss, at.w)
        settled = settled + 1 if before - at.loss <= tolerance * max(abs(at.loss), _NO_LOSS) else 0
    return EntropicResult(at.w, at.lambdas, tuple(losses), len(losses) - 1, w_steps, settled > 0)


@dataclass(frozen=True, eq=False)
class _Iterate:
    """Channel weights with their W-step and the loss after it."""

    w: np.ndarray
    lambdas: Lambdas
    loss: float


def _at(problem: Problem, w: np.ndarray, eps_l2: float, eps_h: float) -> _Iterate:
    lambdas = weight_step(problem, w, eps_l2)
    return _Iterate(w, lambdas, reduced_loss(problem, w, lambdas, eps_h))


def _newton_iteration(problem: Problem, at: _Iterate, eps_l2: float, eps_h: float) -> tuple[_Iterate, int]:
    """Go to Newton's target or a quarter of the way, or stay; and the number of W-steps taken."""
    target = newton_target(problem, at.w, at.lambdas, eps_l2, eps_h)
    for number, fraction in enumerate(_FRACTIONS, start=1):
        candidate = _at(problem, at.w + fraction * (target - at.w), eps_l2, eps_h)
        if candidate.loss < at.loss:
            return candidate, number
    return at, len(_FRACTIONS)
