"""From a cut, which names layers, to the channel groups of a network: which are cut, and which stay whole."""

from __future__ import annotations

import re

import torch
from torch import nn

from pipelines.cifar_paper import Cut
from streamsparse.errors import UsageError
from streamsparse.solve import Constraints
from streamsparse.types import ChannelGraph, ChannelGroup


def groups_of(graph: ChannelGraph, cut: Cut) -> tuple[ChannelGroup, ...]:
    """The groups that feed the layers of a cut; all of them if it names none.

    Raises:
        UsageError: a layer that no group feeds.
    """
    if not cut.layers:
        return graph.groups
    fed = {consumer.layer for group in graph.groups for consumer in group.consumers}
    if missing := sorted(set(cut.layers) - fed):
        raise UsageError(
            "Nothing can be cut before these layers.", expected=sorted(fed), got=missing, where=cut.name
        )
    return tuple(
        group for group in graph.groups if any(consumer.layer in cut.layers for consumer in group.consumers)
    )


def constraints_of(graph: ChannelGraph, cut: Cut) -> Constraints:
    """All other groups stay whole: each is named by a layer that it cuts and no group of the cut does.

    Raises:
        UsageError: a group without such a layer.
    """
    wanted = groups_of(graph, cut)
    touched = {layer for group in wanted for layer in _layers(group)}
    leave = []
    for group in (group for group in graph.groups if group not in wanted):
        alone = [layer for layer in _layers(group) if layer not in touched]
        if not alone:
            raise UsageError(
                f"Group '{group.name}' cannot be left whole.", expected="a layer of its own", where=cut.name,
                got=_layers(group), remedy="cut it too, or give counts by hand",
            )  # fmt: skip
        leave.append(alone[0])
    return Constraints(leave=tuple(leave))


def _layers(group: ChannelGroup) -> list[str]:
    return list(dict.fromkeys(part.tensor.rpartition(".")[0] for part in group.slices))


def checkpoint_name(cut: Cut, suffix: str = "") -> str:
    """Of a cut's checkpoint in the run: letters, digits, dots and dashes."""
    return "-".join([re.sub(r"[^A-Za-z0-9._]+", "-", cut.name).strip("-"), *([suffix] if suffix else [])])


def local_sparsity(original: nn.Module, pruned: nn.Module, cut: Cut) -> float | None:
    """Of the layers that the cut names."""
    if not cut.layers:
        return None
    counts = [
        sum(parameter.numel() for layer in cut.layers for parameter in model.get_submodule(layer).parameters())
        for model in (original, pruned)
    ]
    return 1 - counts[1] / counts[0]


def width(pruned: nn.Module, group: ChannelGroup) -> int:
    """Positions of a group that a pruned network still has."""
    part = group.slices[0]
    tensor: torch.Tensor = pruned.state_dict()[part.tensor]
    return tensor.shape[part.dim] // len(part.index[0])
