"""A channel group and its statistics on some of the positions alone, as if the others had never been there.

Cross-validating supports of a wide layer needs only the columns of those supports: a fraction of every fold's Gram.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.regression import columns_of
from streamsparse.solve.problems import Statistics
from streamsparse.types import ChannelGroup, Consumer, LayerGeometry

Narrowed = tuple[ChannelGroup, Mapping[str, LayerGeometry], Statistics]
"""A group with geometries and statistics of its consumers."""


def narrowed(
    group: ChannelGroup, geometries: Mapping[str, LayerGeometry], statistics: Statistics, positions: np.ndarray
) -> Narrowed | None:
    """The group with these positions alone, in this order; None if a consumer is a grouped convolution.

    Inputs of a consumer that belong to other groups stay.

    Args:
        positions: sorted, at least one.
    """
    if any(geometries[consumer.layer].groups > 1 for consumer in group.consumers):
        return None
    own_geometries, own_statistics, consumers = {}, {}, []
    for consumer in group.consumers:
        geometry = geometries[consumer.layer]
        kept = _kept_inputs(consumer, geometry, positions)
        place = {channel: slot for slot, channel in enumerate(kept.tolist())}
        inputs = tuple(tuple(place[channel] for channel in consumer.inputs[position]) for position in positions)
        consumers.append(Consumer(consumer.layer, inputs))
        own_geometries[consumer.layer] = replace(geometry, in_channels=len(kept))
        own_statistics[consumer.layer] = _columns(statistics[consumer.layer], columns_of(kept, geometry.taps))
    return replace(group, size=len(positions), consumers=tuple(consumers)), own_geometries, own_statistics


def _kept_inputs(consumer: Consumer, geometry: LayerGeometry, positions: np.ndarray) -> np.ndarray:
    """Input channels of the positions that stay and of other groups, sorted."""
    stay = set(positions.tolist())
    gone = {
        channel for position, inputs in enumerate(consumer.inputs) if position not in stay for channel in inputs
    }
    return np.array([channel for channel in range(geometry.in_channels) if channel not in gone], dtype=np.int64)


def _columns(sums: FoldSums, columns: np.ndarray) -> FoldSums:
    return tuple(
        replace(
            part,
            gram=part.gram[:, columns[:, None], columns],
            cross=part.cross[:, columns],
            sum_x=part.sum_x[:, columns],
        )
        for part in sums
    )
