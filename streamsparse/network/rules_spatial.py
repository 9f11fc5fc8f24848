"""Pooling, resizing and reductions: fine along any dimension but the channels'."""

from __future__ import annotations

from torch import Tensor, fx

from streamsparse.network.labels import Labels
from streamsparse.network.propagation import Propagation, Rule, Value, plain, shape_of
from streamsparse.network.rules_layers import argument, integer


def windowed(spatial: int) -> Rule:
    """Pooling or resizing of the last `spatial` dimensions."""

    def rule(state: Propagation, node: fx.Node) -> Value | None:
        labels, value = state.labels(node.args[0]), node.meta["val"]
        if labels.dim is None or labels.atoms is None:
            return plain(node)
        if labels.dim >= len(labels.shape) - spatial:
            return None
        if isinstance(value, Tensor):
            return Labels(shape_of(node), labels.dim, labels.atoms)
        return [Labels(tuple(piece.shape), labels.dim, labels.atoms) for piece in value]

    return rule


def reduced(name: str) -> Rule:
    """A reduction; `name` is the argument that lists its dimensions."""

    def rule(state: Propagation, node: fx.Node) -> Value | None:
        labels = state.labels(node.args[0])
        if labels.dim is None or labels.atoms is None:
            return plain(node)
        try:
            given = argument(node, name)
        except KeyError:
            return None  # over everything
        listed = given if isinstance(given, list | tuple) else [given]
        dims = {integer(dim) % len(labels.shape) for dim in listed if dim is not None}
        if not dims or labels.dim in dims:
            return None
        return _without(node, labels, dims)

    return rule


def _without(node: fx.Node, labels: Labels, dims: set[int]) -> Value:
    assert labels.dim is not None
    keep = bool(argument(node, "keepdim"))
    dim = labels.dim if keep else labels.dim - sum(1 for d in dims if d < labels.dim)
    value = node.meta["val"]
    if isinstance(value, Tensor):
        return Labels(shape_of(node), dim, labels.atoms)
    return [Labels(tuple(piece.shape), dim, labels.atoms) for piece in value]


def along(state: Propagation, node: fx.Node) -> Value | None:
    """aten.softmax, aten.cumsum ...: not along the channels."""
    labels = state.labels(node.args[0])
    if labels.dim is None:
        return plain(node)
    return labels if integer(argument(node, "dim")) % len(labels.shape) != labels.dim else None


_WINDOWED = (
    "max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d", "max_pool{}d_with_indices",
    "lp_pool{}d", "upsample_nearest{}d", "_upsample_nearest_exact{}d",
)  # fmt: skip

_REDUCTIONS = (
    "mean", "sum", "amax", "amin", "var", "std", "max", "min", "prod", "logsumexp", "norm", "linalg_vector_norm",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **{name.format(spatial): windowed(spatial) for name in _WINDOWED for spatial in (1, 2, 3)},
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"), windowed(2)),
    "upsample_linear1d": windowed(1),
    "upsample_trilinear3d": windowed(3),
    **dict.fromkeys(_REDUCTIONS, reduced("dim")),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "cumsum", "cumprod"), along),
}
