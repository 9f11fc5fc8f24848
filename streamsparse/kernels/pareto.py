"""The best support of every size that any method found: one channel group's Pareto front of size and error.

Training errors are the refit's objective (see `regression`): mean relative squared error over the consumers plus
the ridge term, so that a larger support never needs to be worse, and the front makes sure that it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from streamsparse.errors import UsageError
from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.regression import (
    Problem,
    check_problem,
    loss_weights,
    refit,
    relative_error,
    restricted,
    safe_ridge,
    support_error,
)

Towards = Sequence[np.ndarray | None]
"""For every consumer what its refit is shrunk towards, (outputs, columns), or None for 0."""

FoundBy = Literal["entropic", "elimination", "exchange", "trivial"]
"""What found a support; "trivial" for keeping nothing, keeping everything, and before any method was asked."""


@dataclass(frozen=True, eq=False)
class Front:
    """For each count k of kept positions, the best support that was offered.

    Immutable: offering returns a new front.

    Attributes:
        supports: C + 1 sorted supports, supports[k] of size k.
        errors: (C + 1,) training errors; errors[0] is 1, predicting the mean (0 if all responses are constant).
        methods: what found each support.
        ridge: relative ridge that the errors were computed with.
    """

    supports: tuple[Int64[np.ndarray, " _"], ...]
    errors: Float64[np.ndarray, " positions_plus_1"]
    methods: tuple[FoundBy, ...]
    ridge: float

    @property
    def positions(self) -> int:
        """C, the number of positions to choose from."""
        return len(self.supports) - 1

    def offer(self, support: Int64[np.ndarray, " kept"], error: float, method: FoundBy) -> Front:
        """The front with this support in it, if it is better than what the front holds at its size."""
        return self.merge([(support, error)], method)

    def offer_chain(
        self,
        order: Int64[np.ndarray, " ranked"],
        errors: Float64[np.ndarray, " ranked_plus_1"],
        method: FoundBy,
    ) -> Front:
        """Offer the nested supports order[:1], order[:2], ... with errors[1], errors[2], ..."""
        better = [
            (order[:count], float(errors[count]))
            for count in range(1, len(order) + 1)
            if errors[count] < self.errors[count]
        ]
        return self.merge(better, method)

    def merge(self, candidates: Sequence[tuple[np.ndarray, float]], method: FoundBy) -> Front:
        """Offer several supports with their errors at once."""
        supports, errors = list(self.supports), self.errors.copy()
        methods: list[FoundBy] = list(self.methods)
        for support, error in candidates:
            count = len(support)
            if error < errors[count]:
                supports[count] = np.sort(np.asarray(support, dtype=np.int64))
                errors[count], methods[count] = error, method
        return _extended(Front(tuple(supports), errors, tuple(methods), self.ridge))


def _extended(front: Front) -> Front:
    """Replace every support that is worse than the next smaller one by that one and one more position.

    The smaller support's weights, with zeros for the added position, are weights of the larger: its error is a
    bound, and the error of the added support's refit is not above it.
    """
    supports, errors = list(front.supports), front.errors.copy()
    methods: list[FoundBy] = list(front.methods)
    for count in range(1, len(supports)):
        if errors[count] > errors[count - 1]:
            smaller = supports[count - 1]
            wanted = np.setdiff1d(supports[count], smaller)
            supports[count] = np.sort(np.append(smaller, wanted[0]))
            errors[count], methods[count] = errors[count - 1], methods[count - 1]
    return Front(tuple(supports), errors, tuple(methods), front.ridge)


def trivial_front(problem: Problem, ridge: float = DEFAULT_RIDGE, error_of_all: float | None = None) -> Front:
    """The front before any method was asked: nothing, everything, and prefixes that explain nothing.

    Args:
        ridge: relative to each channel's mean diagonal; one that `safe_ridge` accepts.
        error_of_all: training error with every position kept, where it is known.
    """
    positions = check_problem(problem)
    everything = np.arange(positions, dtype=np.int64)
    at_none = 1.0 if any(loss_weights(problem)) else 0.0
    errors = np.full(positions + 1, at_none)
    errors[-1] = min(at_none, support_error(problem, everything, ridge) if error_of_all is None else error_of_all)
    supports = tuple(everything[:count] for count in range(positions + 1))
    unasked: FoundBy = "trivial"
    return Front(supports, errors, (unasked,) * (positions + 1), ridge)


def held_out_errors(
    training: Sequence[Problem],
    validation: Sequence[Problem],
    front: Front,
    ridge: float = DEFAULT_RIDGE,
    counts: Sequence[int] | None = None,
) -> Float64[np.ndarray, " counts"]:
    """Held-out relative error of the front's supports, by cross-validation on statistics alone.

    For every count the weights are fitted again on each training part and evaluated on the fold it left out;
    the result is the mean over folds and consumers. The supports themselves were chosen with all folds, so
    the figure is slightly optimistic: it misses the variance of the choice, not that of the weights.

    Args:
        training: for each fold, the moments of all other folds.
        validation: for each fold, its own moments, about the means of its training part.
        ridge: relative to each channel's mean diagonal; raised for a fold whose training part, with fewer patches
            than all folds together, needs more.
        counts: evaluate these counts only, in this order; all from 0 to C if None.
    """
    if not training or len(training) != len(validation):
        raise UsageError(
            "Cross-validation needs training and validation moments for the same folds.",
            expected="at least one fold, and as many training as validation problems",
            got=f"{len(training)} training, {len(validation)} validation",
        )
    wanted = range(front.positions + 1) if counts is None else counts
    supports = [front.supports[count] for count in wanted]
    by_fold = [
        support_errors(fitted_on, left_out, supports, ridge)
        for fitted_on, left_out in zip(training, validation, strict=True)
    ]
    mean: np.ndarray = np.mean(by_fold, axis=0)
    return mean


def support_errors(
    training: Problem,
    validation: Problem,
    supports: Sequence[np.ndarray],
    ridge: float,
    towards: Towards | None = None,
) -> Float64[np.ndarray, " supports"]:
    """Relative error in one fold, mean over the consumers, of each support's refit to the others.

    Args:
        training: moments of the other folds; validation: of the fold, about the means of `training`.
        ridge: relative to each channel's mean diagonal; raised where the largest support's Gram needs it.
        towards: what each consumer's refit is shrunk towards, see `regression.refit`; None for 0.
    """
    own = _ridge_for(training, max(supports, key=len, default=np.arange(0)), ridge)
    starts = towards or [None] * len(training)
    return np.array([_validation_error(training, validation, support, own, starts) for support in supports])


def _ridge_for(problem: Problem, support: np.ndarray, ridge: float) -> float:
    """The safe ridge on the largest support; the submatrices of a positive definite matrix are so, too."""
    if not len(support):
        return ridge
    return safe_ridge(tuple(restricted(regression, support) for regression in problem), ridge)


def _validation_error(
    training: Problem, validation: Problem, support: np.ndarray, ridge: float, towards: Towards
) -> float:
    errors = [
        relative_error(left_out, support, refit(fitted_on, support, ridge, start))
        for fitted_on, left_out, start in zip(training, validation, towards, strict=True)
        if left_out.power > 0
    ]
    return float(np.mean(errors)) if errors else 0.0
