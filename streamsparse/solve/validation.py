"""Held-out errors of supports by folds of statistics: no data, and only the columns that the supports need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamsparse.kernels.pareto import Towards, support_errors
from streamsparse.kernels.regression import Problem, columns_of
from streamsparse.solve.narrowing import narrowed
from streamsparse.solve.originals import Originals
from streamsparse.solve.problems import Statistics, fold_problems, weights_by_position
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
        originals: weights that the refits are shrunk towards, as those of the chosen counts will be: as much as
            serves the first fold best at half of the positions, by `ridge` at least. None: towards 0, by `ridge`.
    """
    towards: Towards | None = None if originals is None else weights_by_position(group, geometries, originals)
    needed = np.unique(np.concatenate(supports)).astype(np.int64)
    few = len(needed) and len(needed) <= _WORTH_NARROWING * group.size
    small, size = narrowed(group, geometries, statistics, needed) if few else None, group.size
    if small is not None:
        group, geometries, statistics = small
        supports = [np.searchsorted(needed, support) for support in supports]
        towards = towards and [_at(own, needed, size) for own in towards]
    by_fold: list[np.ndarray] = []
    for training, held_out in fold_problems(group, geometries, statistics):  # holds one fold at a time
        if towards is not None and not by_fold:
            ridge = _shrinkage(training, held_out, supports, ridge, towards)
        by_fold.append(support_errors(training, held_out, supports, ridge, towards))
    errors: np.ndarray = np.mean(by_fold, axis=0)
    return errors


def _at(weights: np.ndarray | None, positions: np.ndarray, size: int) -> np.ndarray | None:
    """Of all `size` positions' columns those of some."""
    return None if weights is None else weights[:, columns_of(positions, weights.shape[1] // size)]


def _shrinkage(
    training: Problem, held_out: Problem, supports: Sequence[np.ndarray], ridge: float, towards: Towards
) -> float:
    """The ridge of least error at the support that is nearest to half of the largest."""
    half = max(map(len, supports)) / 2
    middle = min(supports, key=lambda support: abs(len(support) - half))
    wide = len(middle) * max(regression.taps for regression in training) > WIDE_COLUMNS
    candidates = [ridge, *(candidate for candidate in (WIDE_RIDGES if wide else RIDGES) if candidate > ridge)]
    errors = [support_errors(training, held_out, [middle], candidate, towards)[0] for candidate in candidates]
    return candidates[int(np.argmin(errors))]
