"""Elementwise operations: operands that meet entry by entry along the channels go together."""

from __future__ import annotations

from torch import Tensor, fx

from streamsparse.network.labels import Labels
from streamsparse.network.propagation import Propagation, Rule, Value, plain, shape_of
from streamsparse.types import Role

_CONSTANT = "combined entry by entry with a tensor that has no channels to remove"
_BROADCAST = "a single channel that is broadcast over others"


def pointwise(state: Propagation, node: fx.Node) -> Value | None:
    """Unite the operands' channels; bind parameters and buffers per channel."""
    operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    parameters = [n for n in operands if state.parameter(n) is not None]
    activations = [state.labels(n) for n in operands if n not in parameters]
    if all(labels.dim is None for labels in activations):
        activations += [state.label_parameter(n) for n in parameters]
        parameters = []
    shape = shape_of(node)
    labelled = [labels for labels in activations if labels.dim is not None]
    if not labelled:
        return plain(node)
    dims = {_aligned(labels, len(shape)) for labels in labelled}
    if len(dims) > 1:
        return None
    result = _meet(state, activations, shape, dims.pop())
    for parameter in parameters:
        _bind(state, parameter, result)
    if _writes_elsewhere(state, node, result):
        return None
    return result


def _aligned(labels: Labels, rank: int) -> int:
    """The channel dimension in the broadcast result."""
    assert labels.dim is not None
    return labels.dim + rank - len(labels.shape)


def _meet(state: Propagation, operands: list[Labels], shape: tuple[int, ...], dim: int) -> Labels:
    """Labels of the result, with everything united or frozen that meets in it."""
    full = [o for o in operands if o.atoms is not None and o.atoms.size == shape[dim]]
    if not full:
        for one in operands:
            state.freeze(one, _BROADCAST)
        return Labels(shape)
    first = full[0].atoms
    assert first is not None
    for other in operands:
        behind = len(shape) - dim
        size = other.shape[-behind] if len(other.shape) >= behind else 1
        if other.atoms is None and size > 1:
            state.freeze(full[0], _CONSTANT)
        elif other.atoms is not None and size != shape[dim]:
            state.freeze(other, _BROADCAST)
        elif other.atoms is not None:
            state.table.unite(first, other.atoms, state.cause(_CONSTANT))
    return Labels(shape, dim, first)


def _bind(state: Propagation, parameter: fx.Node, result: Labels) -> None:
    """A parameter with one entry per channel is cut with them; one without is used as it is."""
    if result.dim is None or result.atoms is None:
        return
    shape = shape_of(parameter)
    dim = result.dim - (len(result.shape) - len(shape))
    if dim >= 0 and shape[dim] > 1:
        state.bind(state.state[parameter.name], dim, result.atoms, Role.PASS_THROUGH)


def _writes_elsewhere(state: Propagation, node: fx.Node, result: Labels) -> bool:
    """Whether an in-place operation writes channels into a tensor that has none."""
    if not str(node.target).split(".")[1].endswith("_") or not node.args:
        return False
    target = node.args[0]
    return state.parameter(target) is not None or state.labels(target).dim != result.dim


# elementwise, but not marked so by PyTorch
RULES: dict[str, Rule] = dict.fromkeys(
    ("hardswish", "hardsigmoid", "hardtanh", "relu6", "silu", "mish", "elu", "celu", "selu", "gelu", "leaky_relu",
     "rrelu", "copy", "masked_fill", "where", "addcmul", "addcdiv", "fill", "zero", "relu", "softplus", "square",
     "log_sigmoid", "clamp", "floor_divide", "threshold", "softshrink", "hardshrink", "erf"),
    pointwise,
)  # fmt: skip
