"""Held-out errors of supports by folds of statistics: no data, and only the columns that the supports need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.pareto import Towards, support_errors
from streamsparse.kernels.regression import Problem, columns_of
from streamsparse.solve.narrowing import narrowed
from streamsparse.solve.originals import Originals
from streamsparse.solve.problems import (
    Statistics,
    fold_count,
    fold_problem,
    other_columns,
    weights_by_position,
    weights_of_others,
)
from streamsparse.solve.refit import RIDGES, WIDE_COLUMNS, WIDE_RIDGES
from streamsparse.types import ChannelGroup, LayerGeometry

_WORTH_NARROWING = 0.75  # of the positions: above, a narrowed copy of the statistics saves little


def cross_validated(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    supports: Sequence[np.ndarray],
    ridge: float,
    originals: Originals | None = None,
) -> np.ndarray:
    """Held-out relative error of each support, (supports,): mean over folds and consumers.

    Weights are fitted again on all folds but one and evaluated on that one. Which positions a support holds was
    decided elsewhere, as a rule on all folds: the figure misses the variance of that choice.

    Args:
        supports: sorted positions, at least one support.
        ridge: relative to each channel's mean diagonal, raised where a fold needs it.
        originals: weights that the refits are shrunk towards, those of other groups' inputs too, as those of the
            chosen counts will be: as much as serves the first fold best at half of the positions, by `ridge` at
            least. None: towards 0, by `ridge`; other groups' inputs are fitted by least squares.
    """
    towards: Towards | None = None if originals is None else weights_by_position(group, geometries, originals)
    starts = () if originals is None else weights_of_others(group, geometries, originals)
    shared = any(other_columns(consumer, geometries[consumer.layer]).size for consumer in group.consumers)
    needed = np.unique(np.concatenate(supports)).astype(np.int64)
    few = len(needed) and len(needed) <= _WORTH_NARROWING * group.size
    small, size = narrowed(group, geometries, statistics, needed) if few else None, group.size
    if small is not None:
        group, geometries, statistics = small
        supports = [np.searchsorted(needed, support) for support in supports]
        towards = towards and [_at(own, needed, size) for own in towards]

    def at(fold: int, ridge: float) -> tuple[Problem, Problem]:
        context = DEFAULT_RIDGE if originals is None else ridge
        return fold_problem(group, geometries, statistics, fold, context, starts)

    by_fold: list[np.ndarray] = []
    for fold in range(fold_count(group, statistics)):  # holds one fold at a time
        pair = at(fold, ridge)
        if towards is not None and not by_fold:
            ridge = _shrinkage(partial(at, 0) if shared else partial(_same, pair), supports, ridge, towards)
            pair = at(0, ridge) if shared else pair
        by_fold.append(support_errors(*pair, supports, ridge, towards))
    errors: np.ndarray = np.mean(by_fold, axis=0)
    return errors


def _same(pair: tuple[Problem, Problem], _ridge: float) -> tuple[Problem, Problem]:
    """Without inputs of other groups: whatever their ridge."""
    return pair


def _at(weights: np.ndarray | None, positions: np.ndarray, size: int) -> np.ndarray | None:
    """Of all `size` positions' columns those of some."""
    return None if weights is None else weights[:, columns_of(positions, weights.shape[1] // size)]


def _shrinkage(
    at: Callable[[float], tuple[Problem, Problem]], supports: Sequence[np.ndarray], ridge: float, towards: Towards
) -> float:
    """The ridge of least error at the support that is nearest to half of the largest.

    Args:
        at: training and held-out regressions of the fold that judges, by the ridge of their context.
    """
    half = max(map(len, supports)) / 2
    middle = min(supports, key=lambda support: abs(len(support) - half))
    training, held_out = at(ridge)
    wide = len(middle) * max(regression.taps for regression in training) > WIDE_COLUMNS
    candidates = [ridge, *(candidate for candidate in (WIDE_RIDGES if wide else RIDGES) if candidate > ridge)]
    powers = [regression.power for regression in held_out]  # a larger ridge leaves more: errors are made comparable
    errors = [_error(*at(candidate), middle, candidate, towards, powers) for candidate in candidates]
    return candidates[int(np.argmin(errors))]


def _error(
    training: Problem,
    held_out: Problem,
    support: np.ndarray,
    ridge: float,
    towards: Towards,
    powers: Sequence[float],
) -> float:
    """Mean over the consumers of the held-out error over the power that is given for it."""
    each = zip(training, held_out, towards, powers, strict=True)
    errors = [
        support_errors((fitted,), (judged,), [support], ridge, [start])[0] * judged.power / power
        for fitted, judged, start, power in each
        if power > 0
    ]
    return float(np.mean(errors)) if errors else 0.0
