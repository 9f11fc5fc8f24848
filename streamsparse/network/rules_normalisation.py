"""Normalisations and PReLU: channels pass through one to one, parameters and statistics go with them.

A normalisation whose statistics mix channels is exact only if they leave together (the groups of a GroupNorm);
a LayerNorm over the channels is approximate: without the removed channels its mean and variance are others.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from streamsparse.network.labels import Atoms, Labels
from streamsparse.network.propagation import Propagation, Rule, Value, is_free
from streamsparse.network.rules_layers import argument, channels_along, integer
from streamsparse.types import Role

_STATE = ("weight", "bias", "running_mean", "running_var")


def per_channel(state: Propagation, node: fx.Node) -> Value | None:
    """aten.batch_norm, aten.instance_norm, aten.prelu: one statistic or slope per channel."""
    labels = state.labels(node.args[0])
    atoms = channels_along(labels, 1)
    if atoms is None:
        return None
    return labels if _bind(state, node, _STATE, atoms) else None


def group_norm(state: Propagation, node: fx.Node) -> Value | None:
    """aten.group_norm: a whole group of channels is one position."""
    labels = state.labels(node.args[0])
    atoms, groups = channels_along(labels, 1), integer(argument(node, "num_groups"))
    if atoms is None or not _bind(state, node, _STATE[:2], atoms):
        return None
    if groups == 1:
        state.table.approximate(atoms, _statistics(state, "GroupNorm of one group"))
    else:
        members = atoms.reshape(groups, -1)
        first = np.repeat(members[:, :1], members.shape[1], axis=1)
        why = state.cause("tied to a group of a GroupNorm that cannot be removed")
        state.table.unite(first.reshape(-1), atoms, why)
    return labels


def layer_norm(state: Propagation, node: fx.Node) -> Value | None:
    """aten.layer_norm, aten.rms_norm over the last dimensions."""
    labels = state.labels(node.args[0])
    normalised = argument(node, "normalized_shape")
    assert isinstance(normalised, list | tuple)
    if labels.dim is None or labels.atoms is None or labels.dim < len(labels.shape) - len(normalised):
        return labels
    dim = labels.dim - (len(labels.shape) - len(normalised))
    for name in ("weight", "bias"):
        given = argument(node, name) if _has(node, name) else None
        key = state.parameter(given)
        if given is not None and key is None:
            return None
        if key is not None:
            state.bind(key, dim, labels.atoms, Role.PASS_THROUGH)
    state.table.approximate(labels.atoms, _statistics(state, "LayerNorm"))
    return labels


def _statistics(state: Propagation, what: str) -> str:
    assert state.node is not None
    return f"{what} over these channels: its statistics change with the channels that remain"


def _has(node: fx.Node, name: str) -> bool:
    schema = getattr(node.target, "_schema")  # noqa: B009  not in the type of fx.Node.target
    return any(parameter.name == name for parameter in schema.arguments)


def _bind(state: Propagation, node: fx.Node, names: tuple[str, ...], atoms: Atoms) -> bool:
    """Bind the parameters of one entry per channel; False if one is neither a parameter nor plain."""
    for name in names:
        given = argument(node, name) if _has(node, name) else None
        key = state.parameter(given)
        if key is not None and state.shapes.get(key) != (1,):
            state.bind(key, 0, atoms, Role.PASS_THROUGH)
        elif key is None and given is not None and not _meet(state, state.labels(given), atoms):
            return False
    return True


def _meet(state: Propagation, labels: Labels, atoms: Atoms) -> bool:
    """Tie a parameter that is computed from others (a gain times a constant) to the channels."""
    if labels.atoms is None or labels.atoms.size != atoms.size:
        return not is_free(atoms)
    state.table.unite(labels.atoms, atoms, state.cause("tied to a parameter that cannot be cut"))
    return True


RULES: dict[str, Rule] = {
    "batch_norm": per_channel,
    "instance_norm": per_channel,
    "prelu": per_channel,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
}
