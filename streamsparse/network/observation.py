"""Groups that could be cut but must stay whole, because a consumer's weights cannot be re-estimated.

Surgery needs the tensors alone. Re-estimation needs the two sides of every consumer's regression, as a forward hook
on the consumer's own module sees them. A layer that no hook sees that way (a transposed convolution, a raw
parameter, a head that only training executes, a weight that two modules share) can be cut, but nothing could make
up for what it loses: a group that feeds it is left whole.
"""

from __future__ import annotations

from collections.abc import Collection

from streamsparse.types import ChannelGraph, ChannelGroup, Consumer, Role


def whole_groups(graph: ChannelGraph, observed: Collection[str] | None = None) -> dict[str, str]:
    """Names of the groups that solve leaves whole, and why: one phrase that names the layers.

    Args:
        graph: from `find_groups`.
        observed: layers whose inputs and outputs were captured; None for every layer that can be.
    """
    seen = graph.layers if observed is None else observed
    found: dict[str, str] = {}
    for group in graph.groups:
        reasons = [reason for one in group.consumers if (reason := _obstacle(graph, group, one, seen))]
        if reasons:
            found[group.name] = "; ".join(dict.fromkeys(reasons))
    return found


def _obstacle(graph: ChannelGraph, group: ChannelGroup, consumer: Consumer, seen: Collection[str]) -> str | None:
    """Why this consumer cannot be re-estimated, or None."""
    if consumer.layer not in graph.layers:
        return f"{_weight(group, consumer)} is not the weight of one plain layer that evaluation calls"
    if consumer.layer not in seen:
        return f"'{consumer.layer}' was not captured"
    if len({len(inputs) for inputs in consumer.inputs}) > 1:
        return f"'{consumer.layer}' sees some positions through more inputs than others"
    return None


def _weight(group: ChannelGroup, consumer: Consumer) -> str:
    """Key of the tensor that the consumer multiplies with."""
    weights = [part for part in group.slices if part.role is Role.CONSUMER and part.index == consumer.inputs]
    own = [part.tensor for part in weights if part.tensor.rpartition(".")[0] == consumer.layer]
    return f"'{(own or [consumer.layer])[0]}'"
