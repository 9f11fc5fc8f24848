"""Which rule follows which operation.

    rules_layers         convolutions, linear layers, products with a weight: consume channels, make new ones
    rules_normalisation  BatchNorm, InstanceNorm, GroupNorm, LayerNorm, PReLU
    rules_layout         view, permute, cat, slice, chunk ...: carried out on the labels themselves
    rules_pointwise      elementwise operations, with parameters and buffers per channel
    rules_spatial        pooling, resizing, padding, reductions, softmax

An operation that is in none of them freezes what reaches it.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch._ops import OpOverload

from streamsparse.network import rules_layers, rules_layout, rules_normalisation, rules_pointwise, rules_spatial
from streamsparse.network.propagation import Propagation, Rule, Value

RULES: dict[str, Rule] = {
    **rules_layers.RULES,
    **rules_normalisation.RULES,
    **rules_layout.RULES,
    **rules_spatial.RULES,
    **rules_pointwise.RULES,
}


def rule_for(node: fx.Node) -> Rule | None:
    """The rule that follows the node, None if there is none."""
    if node.target is operator.getitem:
        return _item
    if not isinstance(node.target, OpOverload):
        return None
    name = str(node.target._schema.name).split("::")[-1].removesuffix("_")
    if name in RULES:
        return RULES[name]
    return rules_pointwise.pointwise if torch.Tag.pointwise in node.target.tags else None


def _item(state: Propagation, node: fx.Node) -> Value | None:
    source, index = node.args
    assert isinstance(source, fx.Node)
    value = state.values.get(source.name)
    return value[int(str(index))] if isinstance(value, list) else None
