"""Held-out errors of supports by folds of statistics: no data, and only the columns that the supports need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap

import numpy as np

from streamsparse.kernels.pareto import support_errors
from streamsparse.kernels.regression import Problem
from streamsparse.solve.narrowing import narrowed
from streamsparse.solve.problems import Statistics, fold_problems
from streamsparse.types import ChannelGroup, LayerGeometry

_WORTH_NARROWING = 0.75  # of the positions: above, a narrowed copy of the statistics saves little


def cross_validated(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    supports: Sequence[np.ndarray],
    ridge: float,
) -> np.ndarray:
    """Held-out relative error of each support, (supports,): mean over folds and consumers.

    Weights are fitted again on all folds but one and evaluated on that one. Which positions a support holds was
    decided elsewhere, as a rule on all folds: the figure misses the variance of that choice.

    Args:
        supports: sorted positions, at least one support.
        ridge: relative to each channel's mean diagonal, raised where a fold needs it.
    """
    needed = np.unique(np.concatenate(supports)).astype(np.int64)
    few = len(needed) and len(needed) <= _WORTH_NARROWING * group.size
    small = narrowed(group, geometries, statistics, needed) if few else None
    if small is not None:
        group, geometries, statistics = small
        supports = [np.searchsorted(needed, support) for support in supports]

    def of_fold(training: Problem, held_out: Problem) -> np.ndarray:
        return support_errors(training, held_out, supports, ridge)

    by_fold = list(starmap(of_fold, fold_problems(group, geometries, statistics)))  # holds one fold at a time
    errors: np.ndarray = np.mean(by_fold, axis=0)
    return errors
