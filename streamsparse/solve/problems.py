"""From statistics and a channel graph to regressions: which columns belong to which position of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from streamsparse.errors import StatisticsError
from streamsparse.kernels.folds import FoldSums, held_out_moments, total, training_moments
from streamsparse.kernels.least_squares import (
    DEFAULT_RIDGE,
    ContextFit,
    context_fit,
    partial_out,
    residual_moments,
    without_context,
)
from streamsparse.kernels.regression import Problem, Regression, columns_of
from streamsparse.kernels.statistics import Moments, Sums, moments, origin
from streamsparse.solve.originals import Originals
from streamsparse.types import ChannelGroup, Consumer, LayerGeometry

Statistics = Mapping[str, FoldSums]
"""Sums by fold for every captured layer."""

Contexts = tuple[ContextFit | None, ...]
"""For every consumer, what was fitted to channels of other groups; None where there are none."""

Starts = Sequence[np.ndarray | None]
"""For every consumer what that fit is shrunk towards, (outputs, columns of other groups), or None for 0."""


def group_problem(group: ChannelGroup, geometries: Mapping[str, LayerGeometry], statistics: Statistics) -> Problem:
    """The regressions of a group's consumers on all folds together."""
    return _problem(group, geometries, statistics, lambda sums, bias: layer_moments(total(sums), bias))[0]


def fold_problems(
    group: ChannelGroup, geometries: Mapping[str, LayerGeometry], statistics: Statistics
) -> Iterator[tuple[Problem, Problem]]:
    """For every fold, the regressions on the other folds and on the held-out one; see `fold_problem`.

    One fold at a time: two Grams of every consumer.
    """
    for fold in range(fold_count(group, statistics)):
        yield fold_problem(group, geometries, statistics, fold)


def fold_count(group: ChannelGroup, statistics: Statistics) -> int:
    """Folds that all consumers have."""
    return min(len(statistics[consumer.layer]) for consumer in group.consumers)


def fold_problem(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    fold: int,
    ridge: float = DEFAULT_RIDGE,
    starts: Starts = (),
) -> tuple[Problem, Problem]:
    """The regressions on the other folds and on the held-out one (about the training means).

    What channels of other groups explain is fitted to the other folds on both sides.

    Args:
        fold: that is held out.
        ridge: of that fit, relative to each column's diagonal.
        starts: what that fit is shrunk towards; () for 0.
    """

    def side(moments_of: Callable[[FoldSums, int, bool], Moments], contexts: Contexts) -> tuple[Problem, Contexts]:
        return _problem(
            group, geometries, statistics, lambda sums, bias: moments_of(sums, fold, bias), contexts, ridge, starts
        )

    training, contexts = side(training_moments, ())
    return training, side(held_out_moments, contexts)[0]


def weights_by_position(
    group: ChannelGroup, geometries: Mapping[str, LayerGeometry], originals: Originals
) -> list[np.ndarray | None]:
    """For every consumer its original weights on the group's positions, (outputs, positions · columns of each).

    They are what a refit of `group_problem` goes back to: what other groups explain changes no weight.
    """
    return [
        None if weight is None else weight[:, position_columns(consumer, geometries[consumer.layer]).ravel()]
        for consumer, weight in _weights(group, geometries, originals)
    ]


def weights_of_others(
    group: ChannelGroup, geometries: Mapping[str, LayerGeometry], originals: Originals
) -> list[np.ndarray | None]:
    """For every consumer its original weights on the inputs of other groups, (outputs, their columns)."""
    return [
        None if weight is None else weight[:, other_columns(consumer, geometries[consumer.layer])]
        for consumer, weight in _weights(group, geometries, originals)
    ]


def _weights(
    group: ChannelGroup, geometries: Mapping[str, LayerGeometry], originals: Originals
) -> Iterator[tuple[Consumer, np.ndarray | None]]:
    """Every consumer with its original weights, (outputs, all columns)."""
    for consumer in group.consumers:
        geometry = geometries[consumer.layer]
        weight = originals.weight(geometry)
        rows = None if weight is None else weight.reshape(geometry.groups, -1, geometry.columns)
        yield consumer, None if rows is None else _block_diagonal(rows)


def layer_moments(sums: Sums, bias: bool) -> Moments:
    """Centred moments for a layer with a bias; about the origin for one without, which cannot shift its mean."""
    return moments(sums) if bias else moments(sums, about=origin(sums))


def _problem(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    moments_of: Callable[[FoldSums, bool], Moments],
    contexts: Contexts = (),
    ridge: float = DEFAULT_RIDGE,
    starts: Starts = (),
) -> tuple[Problem, Contexts]:
    """Also what was fitted to the context of every consumer, or `contexts`, fitted to other rows, if given."""
    captured = [consumer for consumer in group.consumers if consumer.layer in statistics]
    if len(captured) < len(group.consumers):
        missing = [consumer.layer for consumer in group.consumers if consumer not in captured]
        raise StatisticsError(
            f"Group '{group.name}' has consumers without statistics.",
            expected="statistics of every consumer",
            got=f"none for {', '.join(missing)}",
            where=group.name,
            remedy="run `streamsparse accumulate` again",
        )
    made, none = [], (None,) * len(captured)
    for consumer, context, start in zip(captured, contexts or none, starts or none, strict=True):
        geometry = geometries[consumer.layer]
        found = moments_of(statistics[consumer.layer], geometry.bias)
        made.append(_regression(consumer, geometry, found, context, ridge, start))
    return tuple(regression for regression, _ in made), tuple(context for _, context in made)


def _regression(
    consumer: Consumer,
    geometry: LayerGeometry,
    found: Moments,
    context: ContextFit | None,
    ridge: float,
    start: np.ndarray | None,
) -> tuple[Regression, ContextFit | None]:
    gram, cross = _block_diagonal(found.gram), _block_diagonal(found.cross)
    columns = position_columns(consumer, geometry)  # (positions, columns per position)
    own, rest = columns.ravel(), other_columns(consumer, geometry)
    order = np.concatenate([own, rest])
    power = float(found.power.sum())
    if not np.array_equal(order, np.arange(len(order))):  # a copy of a Gram is worth avoiding
        gram, cross = gram[np.ix_(order, order)], cross[order]
    if rest.size:  # channels of other groups that feed the same layer: they stay, their share is explained
        Regression(gram, cross, power, 1)  # what contradicts itself is found before it is fitted to
        stay = np.arange(len(own), len(order))
        if start is not None:
            cross, power = without_context(gram, cross, power, stay, start)
        if context is None:
            context = context_fit(gram, cross, stay, ridge)
            gram, cross, power = partial_out(gram, cross, power, stay, context)
        else:
            gram, cross, power = residual_moments(gram, cross, power, stay, context)
    return Regression(gram, cross, power, columns.shape[1]), context


def position_columns(consumer: Consumer, geometry: LayerGeometry) -> np.ndarray:
    """Regression columns of every position, (positions, columns per position)."""
    counts = {len(inputs) for inputs in consumer.inputs}
    if len(counts) != 1:
        raise StatisticsError(
            "The positions of a group feed different numbers of inputs of one layer.",
            expected="the same number for every position",
            got=sorted(counts),
            where=geometry.layer,
        )
    return np.stack([columns_of(np.asarray(inputs), geometry.taps) for inputs in consumer.inputs])


def other_columns(consumer: Consumer, geometry: LayerGeometry) -> np.ndarray:
    """Regression columns of inputs that belong to other groups, sorted."""
    return np.setdiff1d(np.arange(geometry.groups * geometry.columns), position_columns(consumer, geometry))


def _block_diagonal(blocks: np.ndarray) -> np.ndarray:
    """(groups, a, b) -> (groups·a, groups·b): the convolution groups of one layer do not see each other."""
    if blocks.shape[0] == 1:
        first: np.ndarray = blocks[0]
        return first
    groups, rows, columns = blocks.shape
    whole = np.zeros((groups * rows, groups * columns))
    for number, block in enumerate(blocks):
        whole[number * rows : (number + 1) * rows, number * columns : (number + 1) * columns] = block
    return whole
