"""Weights and bias of a layer on the input channels that are kept.

Least squares, shrunk towards the original's weights: argmin_Q ‖Y − X_S Qᵀ‖² + Σ_c ridge_c ‖Q_c − P_c‖². With many
patches the ridge of least held-out error is small, and this is least squares; with few, what they cannot tell stays
as it was. On a LeNet at half of its parameters that takes the divergence after 64 images from 0.19 to 0.02 nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamsparse.kernels.folds import FoldSums, split_moments, total
from streamsparse.kernels.regression import Regression, refit, relative_error
from streamsparse.kernels.statistics import Moments
from streamsparse.solve.problems import layer_moments
from streamsparse.types import ChannelGraph, LayerError, LayerGeometry

_ROUND_OFF = 1e-9
"""Relative differences between held-out errors that mean nothing."""

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Relative to each channel's mean diagonal: from exact least squares to hardly a change of the weights."""
WIDE_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
WIDE_COLUMNS = 768
_SEARCH_FLOPS = 4e11  # per layer: some 20 s on one core


@dataclass(frozen=True, eq=False)
class RefittedLayer:
    """Weights of one layer after channels of its input were removed.

    Attributes:
        layer: module path.
        weight: of the layer's original shape, float64; zero for the inputs that were removed.
        bias: (outputs,), or None for a layer without one.
        error: training and held-out.
    """

    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    error: LayerError


def kept_inputs(graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Input channels (features) that every consumer of a group retains, by layer, sorted.

    Consumers that are no layers of the graph (nobody sees their inputs) are left out; their groups stay whole.
    """
    removed: dict[str, set[int]] = {}
    for group in graph.groups:
        dropped = set(range(group.size)) - set(keep.get(group.name, range(group.size)))
        for consumer in group.consumers:
            removed.setdefault(consumer.layer, set()).update(
                channel for position in dropped for channel in consumer.inputs[position]
            )
    return {
        layer: np.array([c for c in range(graph.layers[layer].in_channels) if c not in gone], dtype=np.int64)
        for layer, gone in removed.items()
        if layer in graph.layers
    }


@dataclass(frozen=True)
class RidgeSearch:
    """How the ridge of a layer's refit is chosen.

    Attributes:
        ridges: candidates, ascending, relative to each channel's mean diagonal.
        folds: how many of the folds judge them; None for all.
    """

    ridges: tuple[float, ...] = RIDGES
    folds: int | None = None


def refit_layer(
    geometry: LayerGeometry,
    sums: FoldSums,
    inputs: np.ndarray,
    search: RidgeSearch,
    original: np.ndarray | None = None,
) -> RefittedLayer:
    """Weights by least squares, shrunk towards the original's, and exact bias; the shrinkage errs least held out.

    Args:
        geometry: of the layer.
        sums: its statistics by fold; in a sequential refit, of the inputs that the pruned layers now produce.
        inputs: sorted input channels that are kept.
        search: for the ridge.
        original: the layer's weight before anything was removed, of its shape; None shrinks towards 0.
    """
    splits = [split_moments(sums, fold, geometry.bias) for fold in range(len(sums))]
    towards = by_convolution_group(original, geometry)
    ridge, held_out = _best_ridge(splits, geometry, inputs, search, towards)
    whole = layer_moments(total(sums), geometry.bias)
    weights, errors = [], []
    for number, (regression, support) in enumerate(_regressions(whole, geometry, inputs)):
        fitted = refit(regression, support, ridge, towards[number])  # (outputs/groups, kept columns)
        errors.append((relative_error(regression, support, fitted), float(whole.power[number])))
        weights.append(_expanded(fitted, support, geometry))
    return RefittedLayer(
        layer=geometry.layer,
        weight=_shaped(np.stack(weights), geometry),
        bias=_bias(whole, np.stack(weights)) if geometry.bias else None,
        error=LayerError(geometry.layer, _pooled(errors), held_out, ridge),
    )


def best_from_above(ridges: Sequence[float], error_at: Callable[[float], float]) -> tuple[float, float]:
    """Ridge and held-out error where, from the largest ridge down, the error rises first.

    From above it falls to its least; from below, where rows are about as many as columns, it need not.

    Args:
        ridges: ascending.
    """
    largest, *others = reversed(ridges)
    best = (largest, error_at(largest))
    for ridge in others:
        error = error_at(ridge)
        if error > best[1] * (1 + _ROUND_OFF):
            break
        if error < best[1]:
            best = (ridge, error)
    return best


def by_convolution_group(original: np.ndarray | None, geometry: LayerGeometry) -> Sequence[np.ndarray | None]:
    """A layer's weight, (outputs/groups, columns) for each convolution group; of None as many None."""
    if original is None:
        return [None] * geometry.groups
    shape = (geometry.groups, geometry.out_channels // geometry.groups, geometry.columns)
    return list(np.asarray(original, dtype=np.float64).reshape(shape))


def on_inputs(geometry: LayerGeometry, inputs: int) -> LayerGeometry:
    """The layer on so many of its input channels (features), as statistics of the kept ones alone describe it.

    A grouped convolution, whose groups may keep different numbers, stays as it is.
    """
    if inputs == geometry.in_channels or geometry.groups != 1:
        return geometry
    linear = geometry.kind == "linear"
    shape = (*geometry.input_shape[:-1], inputs) if linear else (inputs, *geometry.input_shape[1:])
    return replace(geometry, in_channels=inputs, input_shape=shape)


def affordable_search(geometry: LayerGeometry, kept: int, folds: int) -> RidgeSearch:
    """All of `RIDGES` on all folds for narrow layers; for wide ones, whose factorizations take long, the middle
    ones on one fold, or as many as it may cost.

    Args:
        geometry: of the layer.
        kept: input channels that stay.
        folds: each candidate is fitted once per fold that judges it.
    """
    columns = kept / geometry.groups * geometry.taps
    flops = geometry.groups * columns**2 * (columns / 3 + 2 * geometry.out_channels / geometry.groups)
    count = int(_SEARCH_FLOPS // max(flops, 1.0))  # of factorizations
    if count >= folds * len(RIDGES):
        return RidgeSearch()
    return RidgeSearch(WIDE_RIDGES, None if count >= folds * len(WIDE_RIDGES) else 1)


def _best_ridge(
    splits: list[tuple[Moments, Moments]],
    geometry: LayerGeometry,
    inputs: np.ndarray,
    search: RidgeSearch,
    towards: Sequence[np.ndarray | None],
) -> tuple[float, float]:
    """The ridge of least held-out error on the folds that judge, and the error over all folds."""
    judging = splits[: search.folds]

    def error_at(ridge: float) -> float:
        return _held_out_error(judging, geometry, inputs, ridge, towards)

    best = best_from_above(search.ridges, error_at)
    if len(judging) < len(splits):
        return best[0], _held_out_error(splits, geometry, inputs, best[0], towards)
    return best


def _held_out_error(
    splits: list[tuple[Moments, Moments]],
    geometry: LayerGeometry,
    inputs: np.ndarray,
    ridge: float,
    towards: Sequence[np.ndarray | None],
) -> float:
    errors = []
    for training, held_out in splits:
        fitted = [
            (refit(regression, support, ridge, own), support)
            for (regression, support), own in zip(_regressions(training, geometry, inputs), towards, strict=True)
        ]
        pairs = zip(fitted, _regressions(held_out, geometry, inputs), held_out.power, strict=True)
        errors.append(
            _pooled(
                [(relative_error(test, kept, weights), float(power)) for (weights, kept), (test, _), power in pairs]
            )
        )
    return float(np.mean(errors))


def _regressions(
    found: Moments, geometry: LayerGeometry, inputs: np.ndarray
) -> list[tuple[Regression, np.ndarray]]:
    """One regression per convolution group, with the kept inputs counted within the group."""
    width = geometry.in_channels // geometry.groups
    return [
        (
            Regression(found.gram[number], found.cross[number], float(found.power[number]), geometry.taps),
            inputs[(inputs >= number * width) & (inputs < (number + 1) * width)] - number * width,
        )
        for number in range(geometry.groups)
    ]


def _expanded(fitted: np.ndarray, support: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    """(outputs/groups, kept columns) -> (outputs/groups, columns), zeros for what is removed."""
    whole = np.zeros((len(fitted), geometry.columns // geometry.taps, geometry.taps))
    whole[:, support] = fitted.reshape(len(fitted), len(support), geometry.taps)
    return whole.reshape(len(fitted), geometry.columns)


def _shaped(weights: np.ndarray, geometry: LayerGeometry) -> np.ndarray:
    return weights.reshape(geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)


def _bias(whole: Moments, weights: np.ndarray) -> np.ndarray:
    """ȳ − Q x̄, (outputs,)."""
    bias: np.ndarray = (whole.mean_y - np.einsum("gmn,gn->gm", weights, whole.mean_x)).ravel()
    return bias


def _pooled(errors: list[tuple[float, float]]) -> float:
    """Mean of relative errors, weighted by the powers they are relative to."""
    power = sum(weight for _, weight in errors)
    return sum(error * weight for error, weight in errors) / power if power > 0 else 0.0
