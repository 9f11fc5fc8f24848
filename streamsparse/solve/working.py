"""What a layer's refit would give at a working support: cheap enough to ask while a capture still runs.

The working support keeps a stated fraction of every group's channels: those whose removal, one at a time and with
all others refitted, costs most. Source of the score: B. Hassibi, D. Stork, "Second order derivatives for network
pruning: optimal brain surgeon", NIPS 1992, for blocks of columns; see `kernels.elimination`, which goes on where
this stops, after one round. That is one inversion of the Gram, some seconds for 512 channels of 9 taps, where the
whole path takes minutes. Two channels that stand in for each other may both go, so a front's support of the same
size is at least as good; a refit on it needs no more images, for its residual is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamsparse.kernels.elimination import diagonal_blocks, inverse
from streamsparse.kernels.folds import FoldSums, split_moments
from streamsparse.kernels.regression import Problem, Regression, loss_weights, refit, relative_error, ridge_penalty
from streamsparse.kernels.statistics import Moments
from streamsparse.solve.problems import group_problem
from streamsparse.types import ChannelGroup, LayerGeometry

WORKING_RIDGE = 1e-4  # of the support's choice: safe for Grams of few patches
_NARROW_COLUMNS = 768
_RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
_WIDE_RIDGES = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class RefitErrors:
    """Relative squared errors of one layer's refit, fitted with each fold left out.

    Attributes:
        training_error: on the folds that were fitted, mean over the folds left out.
        held_out_error: on the fold left out, mean.
        error_bar: standard error of that mean over the folds.
        ridge: of least held-out error.
    """

    training_error: float
    held_out_error: float
    error_bar: float
    ridge: float


def working_support(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Mapping[str, FoldSums],
    keep_fraction: float,
) -> np.ndarray:
    """Sorted positions of the group that a run would keep, at least one.

    Args:
        group: with statistics of all its consumers.
        keep_fraction: of the group's positions, above 0 and up to 1.
    """
    kept = max(1, round(keep_fraction * group.size))
    if kept >= group.size:
        return np.arange(group.size)
    costs = removal_costs(group_problem(group, geometries, statistics))
    return np.sort(np.argsort(-costs, kind="stable")[:kept])


def removal_costs(problem: Problem) -> np.ndarray:
    """Rise of the mean relative error when one position alone is removed and all others are refitted, (positions,).

    tr(Q_cᵀ H_cc⁻¹ Q_c) with H = (G + ridge)⁻¹ and Q = H B.
    """
    costs = np.zeros(problem[0].positions)
    for regression, weight in zip(problem, loss_weights(problem), strict=True):
        if weight > 0:
            costs += weight * _removal_costs(regression)
    return costs


def _removal_costs(regression: Regression) -> np.ndarray:
    system = np.array(regression.gram)
    system[np.diag_indices_from(system)] += ridge_penalty(regression, WORKING_RIDGE)
    inverted = inverse(system)
    weights = (inverted @ regression.cross).reshape(regression.positions, regression.taps, -1)
    outer = weights @ weights.transpose(0, 2, 1)  # Q_c Q_cᵀ, (positions, taps, taps)
    blocks = diagonal_blocks(inverted, regression.taps)
    costs: np.ndarray = np.einsum("cii->c", np.linalg.solve(blocks, outer))
    return costs


def refit_errors(geometry: LayerGeometry, sums: FoldSums, inputs: np.ndarray) -> RefitErrors:
    """Cross-validate the refit of a layer on the input channels that are kept, at the best of a few ridges.

    Ridges are tried in ascending order until the held-out error rises.

    Args:
        geometry: of the layer.
        sums: its statistics by fold, with patches in every fold.
        inputs: sorted input channels (features).
    """
    geometry, sums, inputs = _restricted(geometry, sums, inputs)
    splits = [_Split.of(geometry, sums, fold, inputs) for fold in range(len(sums))]
    ridge, fits = _best_ridge(splits, _RIDGES if geometry.columns <= _NARROW_COLUMNS else _WIDE_RIDGES)
    held_out = [fit.held_out_error for fit in fits]
    training = [split.training_error(fit.weights) for split, fit in zip(splits, fits, strict=True)]
    bar = np.std(held_out, ddof=1) / np.sqrt(len(held_out))
    return RefitErrors(float(np.mean(training)), float(np.mean(held_out)), float(bar), ridge)


def _best_ridge(splits: list[_Split], ridges: Sequence[float]) -> tuple[float, list[_Fit]]:
    """The ridge of least mean held-out error, and its fits to every split."""
    best = ridges[0], [split.fit(ridges[0]) for split in splits]
    for ridge in ridges[1:]:
        fits = [split.fit(ridge) for split in splits]
        if _mean_error(fits) >= _mean_error(best[1]):
            break
        best = ridge, fits
    return best


def _mean_error(fits: list[_Fit]) -> float:
    return float(np.mean([fit.held_out_error for fit in fits]))


def _restricted(
    geometry: LayerGeometry, sums: FoldSums, inputs: np.ndarray
) -> tuple[LayerGeometry, FoldSums, np.ndarray]:
    """The layer that has the kept inputs alone, where its convolution is not grouped."""
    if geometry.groups > 1:
        return geometry, sums, inputs
    columns = (inputs[:, None] * geometry.taps + np.arange(geometry.taps)).ravel()
    kept = tuple(
        replace(
            part,
            gram=part.gram[:, columns][:, :, columns],
            cross=part.cross[:, columns],
            sum_x=part.sum_x[:, columns],
        )
        for part in sums
    )
    return replace(geometry, in_channels=len(inputs)), kept, np.arange(len(inputs))


@dataclass(frozen=True, eq=False)
class _Fit:
    """Weights of one split by convolution group, (outputs, kept columns), and their held-out error."""

    weights: list[np.ndarray]
    held_out_error: float


@dataclass(frozen=True, eq=False)
class _Split:
    """Regressions of the convolution groups on all folds but one, and on that one; and their supports."""

    training: list[Regression]
    held_out: list[Regression]
    supports: list[np.ndarray]

    @classmethod
    def of(cls, geometry: LayerGeometry, sums: FoldSums, fold: int, inputs: np.ndarray) -> _Split:
        width = geometry.in_channels // geometry.groups
        supports = [inputs[inputs // width == number] - number * width for number in range(geometry.groups)]
        training, held_out = split_moments(sums, fold, geometry.bias)
        return cls(_by_group(training, geometry), _by_group(held_out, geometry), supports)

    def fit(self, ridge: float) -> _Fit:
        """Weights of every convolution group, and their error on the fold left out."""
        weights = [
            refit(regression, support, ridge)
            for regression, support in zip(self.training, self.supports, strict=True)
        ]
        return _Fit(weights, self._pooled(self.held_out, weights))

    def training_error(self, weights: list[np.ndarray]) -> float:
        """On the folds that were fitted, pooled over the convolution groups by their power."""
        return self._pooled(self.training, weights)

    def _pooled(self, regressions: list[Regression], fitted: list[np.ndarray]) -> float:
        power = sum(regression.power for regression in regressions)
        residual = sum(
            regression.power * relative_error(regression, support, weights)
            for regression, support, weights in zip(regressions, self.supports, fitted, strict=True)
        )
        return residual / power if power > 0 else 0.0


def _by_group(found: Moments, geometry: LayerGeometry) -> list[Regression]:
    return [
        Regression(found.gram[number], found.cross[number], float(found.power[number]), geometry.taps)
        for number in range(geometry.groups)
    ]
