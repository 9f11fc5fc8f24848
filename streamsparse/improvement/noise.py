"""What images tell of plans: whether one is better, and how far a look beside a plan is to be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamsparse.improvement.bench import Counts

SURE = 2.0
"""Standard errors: a plan that was fitted to some images gains on them what it may lose on others."""
_WORTH = 1e-3  # of the loss: less is not worth another round
_LEAST = 1e-12  # standard error of a scale: round-off
_EVEN = 1e-4  # of the greatest error: below it one look alone would be all that is heard, and round-off with it

Curves = Mapping[str, np.ndarray]
"""Losses by group, from no channel kept to all."""


@dataclass(frozen=True)
class Change:
    """From one plan to another on the same images.

    Attributes:
        mean: of the differences of the loss.
        error: standard error of that mean; infinite for one image.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray) -> Change:
        """Losses (images,) each."""
        differences = after - before
        deviation = float(differences.std(ddof=1)) if len(differences) > 1 else np.inf
        return cls(float(differences.mean()), deviation / len(differences) ** 0.5)


def is_better(before: np.ndarray, after: np.ndarray) -> bool:
    """By more than the noise of the images, and by what is worth it."""
    change = Change.of(before, after)
    return change.mean < -max(SURE * change.error, _WORTH * float(before.mean()))


def fitted_curves(
    curves: Curves, counts: Counts, changes: Mapping[tuple[str, int], Change]
) -> dict[str, np.ndarray]:
    """The groups' curves, scaled on either side of their counts by what was measured there."""
    expected = {(name, look): float(curves[name][look] - curves[name][counts[name]]) for name, look in changes}
    told = [look for look in changes if expected[look]]
    scales = dict(
        zip(told, scales_of([changes[look] for look in told], [expected[look] for look in told]), strict=True)
    )
    fitted = {}
    for name, curve in curves.items():
        count, own = counts[name], np.zeros_like(curve)
        for group, look in told:
            if group == name:
                side = slice(None, count) if look < count else slice(count + 1, None)
                own[side] = scales[group, look] * (curve[side] - curve[count])
        fitted[name] = np.asarray(own - own.min())
    return fitted


def scales_of(changes: Sequence[Change], expected: Sequence[float]) -> list[float]:
    """What the expected changes are to be multiplied by, at least 0: posterior means of a random-effects model.

    A look says that its scale is s = d/p, give or take σ/|p|; the scales are spread about a common one by τ, which
    is estimated from them all by the method of moments: R. DerSimonian, N. Laird, Meta-analysis in clinical trials,
    Controlled Clinical Trials 7 (1986). What is spread no more than its errors is taken for the same.
    """
    if not changes:
        return []
    own = np.array([change.mean / p for change, p in zip(changes, expected, strict=True)])
    errors = np.array([change.error / abs(p) for change, p in zip(changes, expected, strict=True)])
    if not np.isfinite(errors).all():  # one image: nothing is known of the errors
        return [1.0] * len(own)
    weights = np.maximum(errors, max(_LEAST, _EVEN * float(errors.max()))) ** -2.0
    common = float(weights @ own / weights.sum())
    excess = float(weights @ (own - common) ** 2) - (len(own) - 1)
    freedom = float(weights.sum() - weights @ weights / weights.sum())
    spread = max(0.0, excess / freedom) if freedom > 0 else np.inf
    about = weights * spread  # of the look's own say, against one of the common scale
    share = np.ones_like(own) if np.isinf(spread) else about / (1 + about)
    return np.maximum(0.0, share * own + (1 - share) * common).tolist()  # type: ignore[no-any-return]
