"""How expensive a layer's tasks are: to share them out, and to begin with the longest. In multiply-adds."""

from __future__ import annotations

from math import prod

from streamsparse.kernels.gram_plan import axes, patch_cost, shift_cost
from streamsparse.kernels.shift_terms import shift_terms
from streamsparse.kernels.statistics import field_shapes
from streamsparse.store.stream import SIDES, CapturedLayer
from streamsparse.types import LayerGeometry

_READ_COST = 40  # of a number of an activation
_WRITE_COST = 1000  # of a number of the statistics, which are large where maps are small


def layer_cost(layer: CapturedLayer) -> float:
    """Multiply-adds, and what is as expensive, of one image."""
    geometry: LayerGeometry = layer.geometry
    products = min(shift_cost(geometry, shift_terms(*axes(geometry))), patch_cost(geometry))
    cross = geometry.patches_per_image * geometry.columns * geometry.out_channels
    return layer.calls * (products + cross + _READ_COST * sum(prod(layer.shape(side)) for side in SIDES))


def write_cost(layer: CapturedLayer) -> float:
    """The same for writing one fold of the finished statistics."""
    return _WRITE_COST * sum(map(prod, field_shapes(layer.geometry).values()))
