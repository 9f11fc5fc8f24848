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
_EVEN = 1e-4  # of the median error: below it one look alone would be all that is heard, and round-off with it
_FLAT = 1e-6  # of the greatest predicted change: of a lesser one no scale can be told

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
    """The groups' curves, scaled on either side of their counts by what was measured there.

    Where the prediction is flat no scale makes it fall: a straight line to the look adds what was measured there. A
    curve that does not rise with the count gives one that does not rise: what does not help is flat.
    """
    expected = [float(curves[name][look] - curves[name][counts[name]]) for name, look in changes]
    seen = zip(changes.items(), scales_of(list(changes.values()), expected), _telling(expected), strict=True)
    own = {name: np.zeros_like(curve) for name, curve in curves.items()}
    for ((name, look), change), scale, telling in seen:
        curve, count = curves[name], counts[name]
        side = slice(None, count) if look < count else slice(count + 1, None)
        own[name][side] = scale * (curve[side] - curve[count])
        if not telling:
            slope = min(0.0, _believed(change) / (look - count))
            reached = np.clip(np.arange(len(curve)), min(count, look), max(count, look))
            own[name][side] += slope * (reached - count)[side]
    return {name: np.asarray(curve - curve.min()) for name, curve in own.items()}


def scales_of(changes: Sequence[Change], expected: Sequence[float]) -> list[float]:
    """What the expected changes are to be multiplied by, at least 0: posterior means of a random-effects model.

    A look says that its scale is s = d/p, give or take σ/|p|; the scales are spread about a common one by τ, which
    is estimated from them all by the method of moments, and weigh 1/(σ²/p² + τ²) in it: R. DerSimonian, N. Laird,
    Meta-analysis in clinical trials, Controlled Clinical Trials 7 (1986). What is spread no more than its errors is
    taken for the same. Where next to nothing is expected a look says nothing of its scale: it is the common one.
    """
    telling = _telling(expected)
    seen = [(change, p) for change, p, tells in zip(changes, expected, telling, strict=True) if tells]
    own = np.array([change.mean / p for change, p in seen])
    errors = np.array([change.error / abs(p) for change, p in seen])
    if not seen or not np.isfinite(errors).all():  # one image: nothing is known of the errors
        return [1.0] * len(changes)
    variances = np.maximum(errors, max(_LEAST, _EVEN * float(np.median(errors)))) ** 2
    weights = 1 / variances
    about_mean = own - weights @ own / weights.sum()
    excess = float(weights @ about_mean**2) - (len(own) - 1)
    freedom = float(weights.sum() - weights @ weights / weights.sum())
    spread = max(0.0, excess / freedom) if freedom > 0 else 0.0
    weights = 1 / (variances + spread)
    common = float(weights @ own / weights.sum())
    scales = np.full(len(changes), common)
    scales[telling] += spread * weights * (own - common)  # the look's own say, against that of the common scale
    return np.maximum(0.0, scales).tolist()  # type: ignore[no-any-return]


def _telling(expected: Sequence[float]) -> np.ndarray:
    """Whether a change was expected, next to the greatest of them: (looks,)."""
    sizes = np.abs(np.array(expected, dtype=np.float64))
    return np.asarray(sizes > _FLAT * sizes.max(initial=0.0))


def _believed(change: Change) -> float:
    """The posterior mean of a change where none was expected.

    As in `scales_of`, with one look and a common change that is known, 0: τ² = d² − σ², so d τ²/(τ² + σ²) is
    d (1 − σ²/d²), and nothing within one standard error.
    """
    return change.mean - change.error**2 / change.mean if abs(change.mean) > change.error else 0.0
