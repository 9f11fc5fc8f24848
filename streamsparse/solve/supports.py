"""A layer's refit at several sets of kept inputs: moments are formed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamsparse.kernels.folds import FoldSums, split_moments, total
from streamsparse.kernels.regression import Regression, refit, relative_error
from streamsparse.kernels.statistics import Moments
from streamsparse.solve.problems import layer_moments
from streamsparse.solve.refit import RIDGES, WIDE_COLUMNS, WIDE_RIDGES, best_from_above, by_convolution_group
from streamsparse.types import LayerGeometry


@dataclass(frozen=True, eq=False)
class LayerRefits:
    """Regressions of a layer's convolution groups: on all folds, on all but the first, and on the first.

    Weights are shrunk towards `original`, (outputs/groups, columns) for each convolution group, or 0 for None. The
    ridge of each refit is the candidate of least error on the first fold alone; `refit_layer` asks every fold,
    at as many times the cost.
    """

    geometry: LayerGeometry
    moments: Moments
    whole: tuple[Regression, ...]
    training: tuple[Regression, ...]
    held_out: tuple[Regression, ...]
    original: Sequence[np.ndarray | None]

    @classmethod
    def of(cls, geometry: LayerGeometry, sums: FoldSums, original: np.ndarray | None = None) -> LayerRefits:
        """From the layer's statistics; with a single fold the ridge is judged on what it was fitted to.

        Args:
            original: the layer's weight before anything was removed, of its shape.
        """
        towards = by_convolution_group(original, geometry)
        moments = layer_moments(total(sums), geometry.bias)
        whole = _by_group(moments, geometry)
        if len(sums) == 1:
            return cls(geometry, moments, whole, whole, whole, towards)
        training, held_out = split_moments(sums, 0, geometry.bias)
        fitted, judged = _by_group(training, geometry), _by_group(held_out, geometry)
        return cls(geometry, moments, whole, fitted, judged, towards)

    def at(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight of the layer's own shape, zero for inputs that are not kept, and bias or None; float64.

        Args:
            inputs: sorted input channels (features) that are kept.
        """
        geometry, width = self.geometry, self.geometry.in_channels // self.geometry.groups
        supports = [inputs[inputs // width == number] - number * width for number in range(geometry.groups)]
        ridge = self._ridge(supports)
        weight = np.zeros((geometry.groups, geometry.out_channels // geometry.groups, width, geometry.taps))
        for number, (regression, support) in enumerate(zip(self.whole, supports, strict=True)):
            fitted = refit(regression, support, ridge, self.original[number])  # (outputs, kept columns)
            weight[number][:, support] = fitted.reshape(len(fitted), len(support), geometry.taps)
        bias = None
        if geometry.bias:
            flat = weight.reshape(geometry.groups, -1, geometry.columns)
            bias = (self.moments.mean_y - np.einsum("gmn,gn->gm", flat, self.moments.mean_x)).ravel()
        return weight.reshape(geometry.out_channels, width, *geometry.kernel), bias

    def _ridge(self, supports: list[np.ndarray]) -> float:
        columns = max(map(len, supports)) * self.geometry.taps
        candidates = RIDGES if columns < WIDE_COLUMNS else WIDE_RIDGES
        return best_from_above(candidates, lambda ridge: self._held_out_error(supports, ridge))[0]

    def _held_out_error(self, supports: list[np.ndarray], ridge: float) -> float:
        """Squared residual, summed over the convolution groups."""
        return sum(
            test.power * relative_error(test, support, refit(regression, support, ridge, towards))
            for regression, test, support, towards in zip(
                self.training, self.held_out, supports, self.original, strict=True
            )
        )


def _by_group(found: Moments, geometry: LayerGeometry) -> tuple[Regression, ...]:
    return tuple(
        Regression(found.gram[number], found.cross[number], float(found.power[number]), geometry.taps)
        for number in range(geometry.groups)
    )
