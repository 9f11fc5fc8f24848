"""Weights of many plans from one reading of the statistics, which takes longer than any of the refits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.one_shot_recipes import NotComparableError
from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.intake.captured import Captured
from streamsparse.kernels.entropic_path import PathPoint
from streamsparse.kernels.entropic_steps import weight_step
from streamsparse.solve.originals import Originals
from streamsparse.solve.supports import LayerRefits
from streamsparse.solve.threads import blas_threads
from streamsparse.store import Run
from streamsparse.store.solution import Weights
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGroup, LayerGeometry

Keep = Mapping[str, tuple[int, ...]]
Paths = Mapping[str, Sequence[PathPoint]]


@dataclass(frozen=True)
class Wanted:
    """Weights to find.

    Attributes:
        name: of the plan.
        keep: positions that stay, by group.
        scaled: the paper's ΛD(w) instead of the exact refit.
    """

    name: str
    keep: Keep
    scaled: bool


@dataclass(frozen=True, eq=False)
class LayerCut:
    """Weight of a layer on the inputs that stay, (outputs, inputs, taps) in float32, and its bias."""

    inputs: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None


def weights_of(
    run: Run, captured: Captured, wanted: Sequence[Wanted], paths: Paths, on_event: OnEvent = ignore
) -> dict[str, dict[str, LayerCut]]:
    """By plan and layer; the statistics of every layer are read once.

    Args:
        wanted: plans for the same groups.
        paths: points of the paper's walk, for those that are `scaled`.
        on_event: hears of every group of every plan.
    """
    found: dict[str, dict[str, LayerCut]] = {one.name: {} for one in wanted}
    originals = Originals.of(run)
    names = list(wanted[0].keep) if wanted else []
    with reporting("weights from statistics", len(names) * len(wanted), "groups", on_event) as advance:
        for name in names:
            group = captured.graph.group(name)
            widest = max(captured.graph.layers[consumer.layer].columns for consumer in group.consumers)
            with blas_threads(widest):
                refits = dict(_refits(run, captured, group, originals))
                for one in wanted:
                    found[one.name] |= _weights_in(group, refits, one, paths)
                    advance(1)
    return found


def _weights_in(
    group: ChannelGroup, refits: Mapping[str, LayerRefits], wanted: Wanted, paths: Paths
) -> dict[str, LayerCut]:
    """Of the group's consumers; of none where all channels stay."""
    kept = wanted.keep[group.name]
    if wanted.scaled:
        return _scaled(group, refits, kept, paths[group.name])
    if len(kept) == group.size:
        return {}
    return {layer: _exact(layers, kept, group.size) for layer, layers in refits.items()}


def whole(cuts: Mapping[str, LayerCut], captured: Captured) -> Weights:
    """In the layers' own shapes, zero for the inputs that go."""
    weights: Weights = {}
    for layer, part in cuts.items():
        geometry = captured.graph.layers[layer]
        flat = np.zeros((geometry.out_channels, geometry.in_channels, geometry.taps))
        flat[:, part.inputs] = part.weight
        weights[layer] = (flat.reshape(geometry.out_channels, geometry.in_channels, *geometry.kernel), part.bias)
    return weights


def _refits(
    run: Run, captured: Captured, group: ChannelGroup, originals: Originals
) -> Iterator[tuple[str, LayerRefits]]:
    """Of the consumers, whose inputs must be the group's positions one after the other."""
    statistics = Statistics(run)
    for consumer in group.consumers:
        geometry = captured.graph.layers[consumer.layer]
        own = [channel for inputs in consumer.inputs for channel in inputs]
        if own != list(range(geometry.in_channels)) or geometry.groups != 1:
            raise NotComparableError(f"layer '{consumer.layer}' does not read one group of channels in order")
        yield consumer.layer, LayerRefits.of(geometry, statistics[consumer.layer], originals.weight(geometry))


def _inputs(geometry: LayerGeometry, kept: Sequence[int], positions: int) -> np.ndarray:
    """Input channels (features) of the kept positions."""
    each = geometry.in_channels // positions
    return (np.asarray(kept, dtype=np.int64)[:, None] * each + np.arange(each)).ravel()


def _exact(layers: LayerRefits, kept: Sequence[int], positions: int) -> LayerCut:
    """Least squares, shrunk towards the original's."""
    inputs = _inputs(layers.geometry, kept, positions)
    weight, bias = layers.at(inputs)
    by_input = weight.reshape(len(weight), -1, layers.geometry.taps)
    return LayerCut(inputs, by_input[:, inputs].astype(np.float32), bias)


def _scaled(
    group: ChannelGroup, refits: Mapping[str, LayerRefits], kept: Sequence[int], points: Sequence[PathPoint]
) -> dict[str, LayerCut]:
    """Q = ΛD(w) of the path's point, without another fit; the bias is exact for it.

    Where no point has exactly so many channels, those of least weight leave the next larger point, and one W-step
    at its ε_L2 follows.
    """
    problem = tuple(
        replace(layers.whole[0], taps=layers.geometry.columns // group.size) for layers in refits.values()
    )
    point = point_of(points, len(kept))
    w = np.zeros(group.size)
    w[list(kept)] = np.maximum(point.w[list(kept)], point.w[point.w > 0].min())
    w /= w.sum()
    found = {}
    for (layer, layers), scaled in zip(refits.items(), weight_step(problem, w, point.eps_l2), strict=True):
        geometry = layers.geometry
        flat = scaled * np.repeat(w, geometry.columns // group.size)  # (outputs, columns)
        bias = layers.moments.mean_y[0] - flat @ layers.moments.mean_x[0] if geometry.bias else None
        inputs = _inputs(geometry, kept, group.size)
        by_input = flat.reshape(len(flat), -1, geometry.taps)
        found[layer] = LayerCut(inputs, by_input[:, inputs].astype(np.float32), bias)
    return found


def point_of(points: Sequence[PathPoint], count: int) -> PathPoint:
    """The point of the walk with the fewest channels that are still enough, else that with the most."""
    enough = [point for point in points if len(point.support) >= count]
    if enough:
        return min(enough, key=lambda point: len(point.support))
    return max(points, key=lambda point: len(point.support))
