"""Convolutions and linear layers as regressions on patches: what a forward hook on each module would see.

A layer is listed if its module's call is exactly this one operation (padding included) and nothing else uses its
weight, because only then are the module's input and output the two sides of the regression, and only then is the
weight that regression's alone. A weight that other code uses through `F.conv2d(x, other.weight)`, or that two
modules share, is not listed; one module under two names is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from streamsparse.network.export import Graph, module_path
from streamsparse.network.propagation import shape_of
from streamsparse.network.rules_layers import argument, integer
from streamsparse.types import LayerGeometry

_KINDS = {"aten.conv1d": "conv1d", "aten.conv2d": "conv2d", "aten.linear": "linear"}
_PADS = ("aten.pad.default", "aten.constant_pad_nd.default")
_MODES = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@dataclass(frozen=True)
class _Padded:
    """The module's input, and how it is padded: (before, after) per spatial dimension."""

    source: fx.Node
    amounts: tuple[tuple[int, int], ...]
    mode: str


def layer_geometry(graph: Graph, model: nn.Module) -> dict[str, LayerGeometry]:
    """Geometry of every layer that is called as a module, in order of (first) execution."""
    modules = dict(model.named_modules(remove_duplicate=False))
    by_module: dict[nn.Module, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function" and module_path(node) in modules:
            by_module[modules[module_path(node)]].append(node)
    layers: dict[str, LayerGeometry] = {}
    for node, weight, layer, kind in _layers(graph):
        calls = [n for n in by_module[modules[layer]] if str(n.target) not in _PADS]
        if layer not in layers and set(calls) == set(weight.users) and all(n.target is node.target for n in calls):
            layers[layer] = _linear(node, layer) if kind == "linear" else _convolution(node, layer, kind)
    return layers


def _layers(graph: Graph) -> Iterator[tuple[fx.Node, fx.Node, str, str]]:
    """Nodes whose weight is a parameter called `weight`, that parameter, its module's path, and the kind."""
    for node in graph.nodes:
        kind = _KINDS.get(str(node.target).rpartition(".")[0])
        if node.op == "call_function" and kind is not None:
            weight = argument(node, "weight")
            key = graph.state.get(weight.name) if isinstance(weight, fx.Node) else None
            if isinstance(weight, fx.Node) and key is not None and key.endswith(".weight"):
                yield node, weight, key.rpartition(".")[0], kind


def _linear(node: fx.Node, layer: str) -> LayerGeometry:
    source = argument(node, "input")
    assert isinstance(source, fx.Node)
    inputs, outputs = shape_of(source), shape_of(node)
    return LayerGeometry(
        layer, "linear", inputs[-1], outputs[-1], (), (), (), (), 1, "zeros",
        argument(node, "bias") is not None, inputs[1:], outputs[1:],
    )  # fmt: skip


def _convolution(node: fx.Node, layer: str, kind: str) -> LayerGeometry:
    weight = argument(node, "weight")
    assert isinstance(weight, fx.Node)
    kernel = shape_of(weight)[2:]
    padded = _padding(node, kernel, layer)
    groups = integer(argument(node, "groups"))
    return LayerGeometry(
        layer=layer,
        kind=kind,
        in_channels=shape_of(weight)[1] * groups,
        out_channels=shape_of(weight)[0],
        kernel=kernel,
        stride=_per_dimension(argument(node, "stride"), len(kernel)),
        padding=padded.amounts,
        dilation=_per_dimension(argument(node, "dilation"), len(kernel)),
        groups=groups,
        padding_mode=padded.mode,
        bias=argument(node, "bias") is not None,
        input_shape=shape_of(padded.source)[1:],
        output_shape=shape_of(node)[1:],
    )


def _padding(node: fx.Node, kernel: tuple[int, ...], layer: str) -> _Padded:
    """Padding of the operation itself and of the padding operation before it in the same module."""
    source = argument(node, "input")
    assert isinstance(source, fx.Node)
    amounts, mode = _own_padding(node, kernel), "zeros"
    while str(source.target) in _PADS and module_path(source) == layer:
        listed = argument(source, "pad")
        assert isinstance(listed, list | tuple)
        pairs = [(integer(listed[i]), integer(listed[i + 1])) for i in range(0, len(listed), 2)][::-1]
        amounts = tuple((a + b, c + d) for (a, c), (b, d) in zip(amounts, pairs, strict=True))
        mode = _MODES[str(argument(source, "mode"))] if str(source.target) == _PADS[0] else "zeros"
        source = argument(source, "self")
        assert isinstance(source, fx.Node)
    return _Padded(source, amounts, mode)


def _own_padding(node: fx.Node, kernel: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    given = argument(node, "padding")
    if given == "valid":
        return ((0, 0),) * len(kernel)
    if given == "same":
        dilation = _per_dimension(argument(node, "dilation"), len(kernel))
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((size, size) for size in _per_dimension(given, len(kernel)))


def _per_dimension(value: object, count: int) -> tuple[int, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    sizes = tuple(integer(size) for size in listed)
    return sizes * count if len(sizes) == 1 else sizes
