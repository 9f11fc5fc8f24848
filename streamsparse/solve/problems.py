"""From statistics and a channel graph to regressions: which columns belong to which position of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from streamsparse.errors import StatisticsError
from streamsparse.kernels.folds import FoldSums, held_out_moments, total, training_moments
from streamsparse.kernels.least_squares import ContextFit, context_fit, partial_out, residual_moments
from streamsparse.kernels.regression import Problem, Regression, columns_of
from streamsparse.kernels.statistics import Moments, Sums, moments, origin
from streamsparse.solve.originals import Originals
from streamsparse.types import ChannelGroup, Consumer, LayerGeometry

Statistics = Mapping[str, FoldSums]
"""Sums by fold for every captured layer."""

Contexts = tuple[ContextFit | None, ...]
"""For every consumer, what was fitted to channels of other groups; None where there are none."""


def group_problem(group: ChannelGroup, geometries: Mapping[str, LayerGeometry], statistics: Statistics) -> Problem:
    """The regressions of a group's consumers on all folds together."""
    return _problem(group, geometries, statistics, lambda sums, bias: layer_moments(total(sums), bias))[0]


def fold_problems(
    group: ChannelGroup, geometries: Mapping[str, LayerGeometry], statistics: Statistics
) -> Iterator[tuple[Problem, Problem]]:
    """For every fold, the regressions on the other folds and on the held-out one (about the training means).

    What channels of other groups explain is fitted to the other folds on both sides. One fold at a time: two Grams
    of every consumer.
    """
    folds = min(len(statistics[consumer.layer]) for consumer in group.consumers)

    def side(
        fold: int, moments_of: Callable[[FoldSums, int, bool], Moments], contexts: Contexts = ()
    ) -> tuple[Problem, Contexts]:
        return _problem(group, geometries, statistics, lambda sums, bias: moments_of(sums, fold, bias), contexts)

    for fold in range(folds):
        training, contexts = side(fold, training_moments)
        yield training, side(fold, held_out_moments, contexts)[0]


def weights_by_position(
    group: ChannelGroup, geometries: Mapping[str, LayerGeometry], originals: Originals
) -> list[np.ndarray | None]:
    """For every consumer its original weights on the group's positions, (outputs, positions · columns of each).

    They are what a refit of `group_problem` goes back to: what other groups explain changes no weight.
    """
    found: list[np.ndarray | None] = []
    for consumer in group.consumers:
        geometry = geometries[consumer.layer]
        weight = originals.weight(geometry)
        if weight is not None:
            rows = weight.reshape(geometry.groups, -1, geometry.columns)  # of every convolution group
            weight = _block_diagonal(rows)[:, position_columns(consumer, geometry).ravel()]
        found.append(weight)
    return found


def layer_moments(sums: Sums, bias: bool) -> Moments:
    """Centred moments for a layer with a bias; about the origin for one without, which cannot shift its mean."""
    return moments(sums) if bias else moments(sums, about=origin(sums))


def _problem(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    moments_of: Callable[[FoldSums, bool], Moments],
    contexts: Contexts = (),
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
    made = []
    for consumer, context in zip(captured, contexts or (None,) * len(captured), strict=True):
        geometry = geometries[consumer.layer]
        found = moments_of(statistics[consumer.layer], geometry.bias)
        made.append(_regression(consumer, geometry, found, context))
    return tuple(regression for regression, _ in made), tuple(context for _, context in made)


def _regression(
    consumer: Consumer, geometry: LayerGeometry, found: Moments, context: ContextFit | None
) -> tuple[Regression, ContextFit | None]:
    gram, cross = _block_diagonal(found.gram), _block_diagonal(found.cross)
    columns = position_columns(consumer, geometry)  # (positions, columns per position)
    own = columns.ravel()
    rest = np.setdiff1d(np.arange(len(gram)), own)
    order = np.concatenate([own, rest])
    power = float(found.power.sum())
    if not np.array_equal(order, np.arange(len(order))):  # a copy of a Gram is worth avoiding
        gram, cross = gram[np.ix_(order, order)], cross[order]
    if rest.size:  # channels of other groups that feed the same layer: they stay, their share is explained
        Regression(gram, cross, power, 1)  # what contradicts itself is found before it is fitted to
        stay = np.arange(len(own), len(order))
        if context is None:
            context = context_fit(gram, cross, stay)
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
