"""Layers that consume the channels of their input and make new ones.

A convolution of several groups is not cut within a group: the inputs and outputs of each group go together.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from streamsparse.network.labels import Atoms, Labels
from streamsparse.network.propagation import Propagation, Rule, Value, producer_name, shape_of
from streamsparse.types import Role

_STANDARDISED = "the weight is computed from other tensors, filter by filter, over its input channels"
_WHOLE_GROUPS = "tied to a group of a grouped convolution that cannot be removed"


def argument(node: fx.Node, name: str) -> object:
    """Argument of an aten operation by its schema name; its default where it is not given."""
    schema = getattr(node.target, "_schema")  # noqa: B009  not in the type of fx.Node.target
    for position, parameter in enumerate(schema.arguments):
        if parameter.name == name:
            if name in node.kwargs:
                return node.kwargs[name]
            return node.args[position] if position < len(node.args) else parameter.default_value
    raise KeyError(f"{schema.name} has no argument {name}")


def integer(value: object) -> int:
    """A static integer argument of the graph."""
    return int(str(value))


def channels_along(labels: Labels, dim: int) -> Atoms | None:
    """The atoms along `dim` if that is the channel dimension or there is none (zeros), else None."""
    if labels.atoms is None:
        return np.zeros(labels.shape[dim], np.int64)
    return labels.atoms if labels.dim == dim % len(labels.shape) else None


def convolution(state: Propagation, node: fx.Node) -> Value | None:
    """aten.conv1d/2d/3d: weight (out, in / groups, *kernel)."""
    inputs, outputs = channels_along(state.labels(argument(node, "input")), -_spatial(node) - 1), shape_of(node)
    if inputs is None:
        return None
    dim, groups = len(outputs) - _spatial(node) - 1, integer(argument(node, "groups"))
    made = _filters(state, node, inputs, groups)
    if made is None:
        return None
    if groups > 1:
        _unite_groups(state, inputs, made, groups)
    return Labels(outputs, dim, made)


def _spatial(node: fx.Node) -> int:
    weight = argument(node, "weight")
    assert isinstance(weight, fx.Node)
    return len(shape_of(weight)) - 2


def _filters(state: Propagation, node: fx.Node, inputs: Atoms, groups: int) -> Atoms | None:
    """Atoms of the output channels, with weight and bias bound."""
    weight = argument(node, "weight")
    key = state.parameter(weight)
    if key is None:
        return _derived_filters(state, node, inputs, groups)
    made = state.outputs_of(key, 0)
    if groups == 1:
        state.bind(key, 1, inputs, Role.CONSUMER)
    else:
        state.bound[key, 0].role = Role.PASS_THROUGH
    return made if _bind_bias(state, node, made) else None


def _derived_filters(state: Propagation, node: fx.Node, inputs: Atoms, groups: int) -> Atoms | None:
    """A weight that is not a parameter itself: its filters may go, its input channels may not."""
    labels = state.labels(argument(node, "weight"))
    if labels.dim != 0 or labels.atoms is None:
        return None
    if groups == 1:
        state.table.freeze(inputs, state.cause(_STANDARDISED))
    _promote(state, labels.atoms)
    return labels.atoms if _bind_bias(state, node, labels.atoms) else None


def _promote(state: Propagation, atoms: Atoms) -> None:
    """The parameters that these filters are computed from are the producers of their channels."""
    for slot in state.bound.values():
        if slot.atoms is atoms:
            slot.role = Role.PRODUCER


def _bind_bias(state: Propagation, node: fx.Node, made: Atoms) -> bool:
    bias = argument(node, "bias")
    if bias is None:
        return True
    key = state.parameter(bias)
    if key is not None:
        state.bind(key, 0, made, Role.PRODUCER)
        return True
    labels = state.labels(bias)
    if labels.atoms is None:
        return False
    state.table.unite(labels.atoms, made, state.cause("tied to a bias that cannot be cut"))
    return True


def _unite_groups(state: Propagation, inputs: Atoms, outputs: Atoms, groups: int) -> None:
    """Everything that enters or leaves one group of the convolution is one position."""
    why = state.cause(_WHOLE_GROUPS)
    members = np.concatenate([inputs.reshape(groups, -1), outputs.reshape(groups, -1)], axis=1)
    first = np.repeat(outputs.reshape(groups, -1)[:, :1], members.shape[1], axis=1)
    state.table.unite(first.reshape(-1), members.reshape(-1), why)


def transposed_convolution(state: Propagation, node: fx.Node) -> Value | None:
    """aten.conv_transpose1d/2d/3d: weight (in, out / groups, *kernel)."""
    spatial, outputs = _spatial(node), shape_of(node)
    inputs = channels_along(state.labels(argument(node, "input")), -spatial - 1)
    key, groups = state.parameter(argument(node, "weight")), integer(argument(node, "groups"))
    if inputs is None or key is None:
        return None
    if groups > 1:
        made = _grouped_outputs(state, node, key, inputs, outputs[-spatial - 1])
        _unite_groups(state, inputs, made, groups)
    else:
        made = state.outputs_of(key, 1)
        state.bind(key, 0, inputs, Role.CONSUMER)
    if not _bind_bias(state, node, made):
        return None
    return Labels(outputs, len(outputs) - spatial - 1, made)


def _grouped_outputs(state: Propagation, node: fx.Node, key: str, inputs: Atoms, size: int) -> Atoms:
    """Outputs of a grouped transposed convolution: whole groups, so they follow the inputs' rows."""
    state.bind(key, 0, inputs, Role.PASS_THROUGH)
    return state.table.create(size, producer_name(key))


def linear(state: Propagation, node: fx.Node) -> Value | None:
    """aten.linear: weight (out, in)."""
    outputs = shape_of(node)
    inputs = channels_along(state.labels(argument(node, "input")), -1)
    if inputs is None:
        return None
    made = _filters(state, node, inputs, groups=1)
    return None if made is None else Labels(outputs, len(outputs) - 1, made)


def product(state: Propagation, node: fx.Node) -> Value | None:
    """aten.matmul, aten.mm of an activation with a parameter (in, out); any other product freezes."""
    left, right = node.args[:2]
    key, outputs = state.parameter(right), shape_of(node)
    if key is None or state.parameter(left) is not None or len(state.shapes.get(key, ())) != 2:
        return None
    inputs = channels_along(state.labels(left), -1)
    if inputs is None:
        return None
    made = state.outputs_of(key, 1)
    state.bind(key, 0, inputs, Role.CONSUMER)
    return Labels(outputs, len(outputs) - 1, made)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    "linear": linear,
    "matmul": product,
    "mm": product,
}
