"""The nouns of the domain: frozen, validated once, understood by every package."""

from streamsparse.types.channels import (
    ChannelGraph,
    ChannelGroup,
    Consumer,
    FrozenChannels,
    LayerGeometry,
    Role,
    SizeAttribute,
    TensorSlice,
    geometry_from_json,
)
from streamsparse.types.outcomes import Costs, LayerError, LayerReport, PrunePlan, Sensitivity, Solution

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Consumer",
    "Costs",
    "FrozenChannels",
    "LayerError",
    "LayerGeometry",
    "LayerReport",
    "PrunePlan",
    "Role",
    "Sensitivity",
    "SizeAttribute",
    "Solution",
    "TensorSlice",
    "geometry_from_json",
]
