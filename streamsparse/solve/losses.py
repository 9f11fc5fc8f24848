"""Predicted loss of the network: from what was measured at a few counts of every group to all of them.

A group's held-out error e(k) is known at every count k, its effect D on the network's output at a few. Small
changes of a layer's output change the output's divergence by a quadratic form, so D is proportional to e where both
are small, and close to a power of e over the decades that matter: the curve is drawn in log D against log e.

    log D |            . '     slope beyond the ends: that of the end segment, within LOWER and UPPER_SLOPES
          |       o---o
          |    o'              between: monotone cubic (F. Fritsch, R. Carlson, SIAM J. Numer. Anal. 17, 1980)
          | . '                o  measured; made monotone by isotonic regression where noise has it otherwise
          +-----------------> log e

The network's loss is predicted by the sum over its groups; `streamsparse.sensitivity` says how good that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from streamsparse.errors import StageMissingError, StatisticsError
from streamsparse.solve.fronts import GroupFront
from streamsparse.types import Sensitivity

LOWER_SLOPES = (0.5, 1.0)
"""Of log loss in log error, below the least error that was measured; small losses are proportional to errors."""
UPPER_SLOPES = (0.5, 2.0)
"""Above the greatest."""
_LEAST = 1e-12  # of errors and losses: round-off


def predicted_losses(
    fronts: Mapping[str, GroupFront], sensitivities: Mapping[str, Sensitivity] | None
) -> dict[str, Float64[np.ndarray, " positions_plus_1"]]:
    """For every group, the loss of the network that keeps k of its positions and all others, (positions + 1,).

    Args:
        fronts: by group.
        sensitivities: of all these groups, by group; None: the held-out relative errors themselves stand in.

    Returns:
        With sensitivities, in their unit (nats per image): nonincreasing in the count, 0 at all positions. Their
        sum over the groups predicts the network's loss.

    Raises:
        StageMissingError: sensitivities of some of the groups only.
        StatisticsError: a sensitivity that does not fit its group.
    """
    if sensitivities is None:
        return {name: front.held_out.copy() for name, front in fronts.items()}
    missing = [name for name in fronts if name not in sensitivities]
    if missing:
        raise StageMissingError(
            "The effect of some groups on the output was not measured.",
            expected=f"sensitivities of {len(fronts)} groups",
            got=f"{len(fronts) - len(missing)}; missing: {', '.join(missing[:5])}",
            remedy="run `streamsparse sensitivity` (again: it resumes)",
        )
    return {name: loss_curve(front.held_out, sensitivities[name]) for name, front in fronts.items()}


def loss_curve(
    held_out: Float64[np.ndarray, " positions_plus_1"], sensitivity: Sensitivity
) -> Float64[np.ndarray, " positions_plus_1"]:
    """The loss of one group at every count, nonincreasing, 0 at the last.

    Args:
        held_out: relative error of the group's consumers, by count.
        sensitivity: of the group.

    Raises:
        StatisticsError: it was measured at no count or at counts that the group does not have, or is not finite.
    """
    positions = len(held_out) - 1
    check_sensitivity(sensitivity, positions)
    losses = np.zeros(positions + 1)
    if positions > 1:
        errors = np.log(np.maximum(_falling(held_out), _LEAST))
        losses[:-1] = np.exp(_drawn(errors, *_monotone(errors, sensitivity)))
    elif positions == 1:
        losses[0] = held_out[0]  # nothing can be measured, and nothing is left to choose
    return losses


def counts_at(held_out: Float64[np.ndarray, " positions_plus_1"], levels: Sequence[float]) -> tuple[int, ...]:
    """Ascending counts at which the held-out error comes down to each of the levels; what cuts nothing is left out.

    Where no count but the whole reaches the greatest level, the largest count that cuts something. None for a group
    of one position.
    """
    falling = _falling(held_out)
    counts = {next((k for k in range(1, len(falling)) if falling[k] <= level), 0) for level in levels} - {0}
    return tuple(sorted(counts or {len(falling) - 1} - {0}))


def _falling(held_out: np.ndarray) -> np.ndarray:
    """Errors at all counts but the whole, each at least that of every larger count: their losses cannot rise."""
    falling: np.ndarray = np.maximum.accumulate(held_out[-2::-1])[::-1]
    return falling


def check_sensitivity(sensitivity: Sensitivity, positions: int) -> None:
    """Refuse what cannot be a sensitivity of a group of so many positions.

    Raises:
        StatisticsError: says what does not fit.
    """
    counts, losses = np.asarray(sensitivity.counts), np.asarray(sensitivity.losses, dtype=np.float64)
    right = len(counts) == len(losses) and (len(counts) > 0 or positions < 2)
    right = right and all(first < second for first, second in pairwise(counts))
    right = right and all(0 < count < positions for count in counts)
    if not right or not np.isfinite(losses).all() or (losses < 0).any():
        raise StatisticsError(
            "A group's sensitivity does not fit the group.",
            expected=f"ascending counts from 1 to {positions - 1}, and as many finite losses of at least 0",
            got=f"counts {sensitivity.counts}, losses {sensitivity.losses}",
            where=sensitivity.group,
            remedy="run `streamsparse sensitivity` again",
        )


def _monotone(errors: np.ndarray, sensitivity: Sensitivity) -> tuple[np.ndarray, np.ndarray]:
    """Distinct log errors, ascending, and nondecreasing log losses that are closest to the measured ones."""
    at = errors[list(sensitivity.counts)]
    measured = np.log(np.maximum(sensitivity.losses, _LEAST))
    distinct, which = np.unique(at, return_inverse=True)
    weights = np.bincount(which).astype(np.float64)
    means = np.bincount(which, weights=measured) / weights
    return distinct, np.asarray(isotonic_regression(means, weights=weights).x)


def _drawn(errors: np.ndarray, at: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Log losses at all log errors: monotone cubic between, straight with a bounded slope beyond."""
    if len(at) == 1:
        only: np.ndarray = losses[0] + (errors - at[0])
        return only
    slopes = np.diff(losses) / np.diff(at)
    below, above = np.clip(slopes[0], *LOWER_SLOPES), np.clip(slopes[-1], *UPPER_SLOPES)
    inside = np.clip(errors, at[0], at[-1])
    drawn: np.ndarray = np.asarray(PchipInterpolator(at, losses)(inside))
    drawn += below * np.minimum(errors - at[0], 0) + above * np.maximum(errors - at[-1], 0)
    return drawn
