"""Operations that only move elements: they are carried out on the labels, so that no index map needs a formula.

What remains of a channel after its removal must be what the same source line makes of the smaller tensor. That
holds for a view, a permutation or a concatenation; a chunk or a partial slice along the channels holds only if
every piece loses as much, so its pieces are united entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from streamsparse.network.labels import Atoms, Labels, collapse
from streamsparse.network.propagation import Propagation, Rule, Value, shape_of
from streamsparse.network.rules_layers import argument, integer

_aten = torch.ops.aten
# a view of a label tensor that is expanded in memory may need a copy
_COPYING = {"view": _aten.reshape.default, "_unsafe_view": _aten.reshape.default}
_MIXES = "what this operation makes go together is all channels of a tensor at once, or cannot be cut"


def moved(state: Propagation, node: fx.Node) -> Value | None:
    """Carry the operation out on the labels."""

    def labels_of(source: fx.Node) -> Any:
        return state.labels(source).tensor()

    arguments = fx.node.map_arg(node.args, labels_of)
    keywords = fx.node.map_arg(node.kwargs, labels_of)
    name = _name(node)
    target: Callable[..., Tensor | list[Tensor]] = _COPYING.get(name, node.target)  # type: ignore[arg-type]
    result = target(*arguments, **keywords)
    why = state.cause(_MIXES)
    if isinstance(result, Tensor):
        return collapse(result, state.table, why)
    return [collapse(piece, state.table, why) for piece in result]


def same(state: Propagation, node: fx.Node) -> Value | None:
    """The input's own labels: copies, casts, dropout."""
    return state.labels(node.args[0])


def split(state: Propagation, node: fx.Node) -> Value | None:
    """aten.chunk, aten.split, aten.split_with_sizes, aten.unbind: equal pieces lose the same entries."""
    labels, pieces = state.labels(node.args[0]), node.meta["val"]
    dim = integer(argument(node, "dim")) % len(labels.shape)
    if labels.atoms is None or labels.dim != dim or len(pieces) == 1:
        return moved(state, node)
    if _name(node) == "unbind" or len({tuple(piece.shape) for piece in pieces}) > 1:
        return None
    _tile(state, labels.atoms, len(pieces))
    if _name(node) != "chunk":
        _given_sizes(state, labels.atoms, pieces[0].shape[dim])
    return moved(state, node)


def _tile(state: Propagation, atoms: Atoms, count: int) -> None:
    """Unite entry i of every one of `count` equal pieces."""
    rows = atoms.reshape(count, -1)
    why = state.cause("split into equal pieces of which one cannot be cut")
    for row in rows[1:]:
        state.table.unite(rows[0], row, why)


def part(state: Propagation, node: fx.Node) -> Value | None:
    """aten.slice, aten.narrow: a part of the channels is one of several equal pieces, or freezes them."""
    labels, taken = state.labels(node.args[0]), shape_of(node)
    dim = integer(argument(node, "dim")) % len(labels.shape)
    if labels.atoms is None or labels.dim != dim or taken == labels.shape:
        return moved(state, node)
    step = integer(argument(node, "step")) if _name(node) == "slice" else 1
    start, width, size = integer(argument(node, "start") or 0), taken[dim], labels.shape[dim]
    start = start + size if start < 0 else start
    if step != 1 or width == 0 or size % width or start % width:
        return None
    _tile(state, labels.atoms, size // width)
    _given_sizes(state, labels.atoms, width)
    return moved(state, node)


def _given_sizes(state: Propagation, atoms: Atoms, width: int) -> None:
    """The module may hold the width of a piece, or of the whole (and divide it in its code)."""
    state.literal_size(width, atoms[:width])
    state.literal_size(atoms.size, atoms)


def constant(state: Propagation, node: fx.Node) -> Value | None:
    """aten.new_zeros ...: takes nothing but the dtype of its input."""
    return Labels(shape_of(node))


def unless_along_channels(name: str) -> Rule:
    """An operation that may not touch the channel dimension; `name` is its argument that lists dimensions."""

    def rule(state: Propagation, node: fx.Node) -> Value | None:
        labels, given = state.labels(node.args[0]), argument(node, name)
        listed = given if isinstance(given, list | tuple) else [given]
        dims = {integer(dim) % len(labels.shape) for dim in listed}
        return moved(state, node) if labels.dim is None or labels.dim not in dims else None

    return rule


def expanded(state: Propagation, node: fx.Node) -> Value | None:
    """aten.expand, aten.repeat: a single channel that is copied over many is frozen."""
    labels = state.labels(node.args[0])
    if labels.atoms is not None and labels.atoms.size == 1:
        return None
    return moved(state, node)


def channel_shuffle(state: Propagation, node: fx.Node) -> Value | None:
    """aten.channel_shuffle: entry i of every group moves together, or the smaller shuffle is another one."""
    labels = state.labels(node.args[0])
    if labels.atoms is None:
        return labels
    if labels.dim != 1:
        return None
    _tile(state, labels.atoms, integer(argument(node, "groups")))
    return moved(state, node)


def padded(state: Propagation, node: fx.Node) -> Value | None:
    """aten.pad: zeros around the channels belong to no channel; other modes may not touch the channels."""
    labels, amounts = state.labels(node.args[0]), argument(node, "pad")
    assert isinstance(amounts, list | tuple)
    if labels.dim is None or labels.atoms is None:
        return Labels(shape_of(node))
    behind = 2 * (len(labels.shape) - 1 - labels.dim)
    before, after = (integer(amounts[behind]), integer(amounts[behind + 1])) if behind < len(amounts) else (0, 0)
    if (before or after) and (_is_not_constant(node) or before < 0 or after < 0):
        return None
    return Labels(shape_of(node), labels.dim, np.pad(labels.atoms, (before, after)))


def _is_not_constant(node: fx.Node) -> bool:
    return _name(node) == "pad" and argument(node, "mode") != "constant"


def _name(node: fx.Node) -> str:
    return str(node.target).split(".")[1].removesuffix("_")


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "t", "numpy_T", "squeeze",
         "unsqueeze", "cat", "concat", "concatenate", "stack", "unflatten", "movedim", "moveaxis", "swapaxes",
         "swapdims", "pixel_shuffle", "pixel_unshuffle", "flip"),
        moved,
    ),
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "alias", "dropout", "feature_dropout", "alpha_dropout", "_to_copy",
         "to", "type_as", "lift_fresh_copy", "zeros_like", "ones_like", "rand_like", "randn_like", "empty_like",
         "full_like"),
        same,
    ),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind", "tensor_split"), split),
    **dict.fromkeys(("slice", "narrow"), part),
    **dict.fromkeys(("expand", "expand_as", "repeat"), expanded),
    **dict.fromkeys(("view_as", "reshape_as"), moved),
    "select": unless_along_channels("dim"),
    "roll": unless_along_channels("dims"),
    "channel_shuffle": channel_shuffle,
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), constant),
    **dict.fromkeys(("pad", "constant_pad_nd"), padded),
}  # fmt: skip
