"""Take channels out of a model, physically or by masking.

Removing a position cuts its entries from every tensor of its group. Masking leaves all shapes and makes the
consumers ignore the position: their weights for it become zero. The two models compute the same function, which
the trial checks.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.network.export import shared_copy
from streamsparse.network.resize import channel_groups, fit_to_tensors, stored_tensors
from streamsparse.types import ChannelGraph, Role

Keep = Mapping[str, Sequence[int]]
Removed = dict[str, dict[int, set[int]]]


def prune(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A smaller copy of `model` without the positions that `keep` leaves out.

    Args:
        model: the model that `graph` was found in; it is left as it is.
        graph: from `find_groups`.
        keep: positions to keep, by group name; a group that is not named stays whole. Order does not matter.

    Returns:
        A model with its own parameters (same dtype, device, `requires_grad`, sharing), whose modules' attributes
        (`out_channels`, `num_features`, `groups`, ...) fit the new shapes.

    Raises:
        ModelError: `keep` names an unknown group, a position twice or out of range, or keeps nothing.
        WeightsError: a module of the model cannot hold the smaller tensors.
    """
    removed = removed_entries(graph, keep)
    tensors = {key: _without(tensor, removed.get(key, {})) for key, tensor in stored_tensors(model).items()}
    smaller = fit_to_tensors(shared_copy(model), tensors, _groups_left(model, removed))
    for path, sizes in size_attributes(model, graph, keep).items():
        for name, size in sizes.items():
            setattr(smaller.get_submodule(path), name, size)
    return smaller


def size_attributes(model: nn.Module, graph: ChannelGraph, keep: Keep) -> dict[str, dict[str, int]]:
    """Numbers in the pruned model's modules that do not follow from tensor shapes, by module path and name.

    Whoever resizes a fresh original must set these too.
    """
    dropped = _dropped(graph, keep)
    sizes: dict[str, dict[str, int]] = {}
    for group in graph.groups:
        for attribute in group.attributes if dropped.get(group.name) else ():
            module = sizes.setdefault(attribute.module, {})
            size = module.get(attribute.name, getattr(model.get_submodule(attribute.module), attribute.name))
            module[attribute.name] = size - attribute.per_position * len(dropped[group.name])
    return sizes


def mask(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A copy of `model` of the same shapes whose consumers ignore the positions that `keep` leaves out.

    Args and errors as in `prune`.
    """
    return _masked(copy.deepcopy(model), graph, keep)


def mask_sharing(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """As `mask`, but what is not masked is shared with the model: for a look, not for training."""
    consumers = {s.tensor for g in graph.groups for s in g.slices if s.role is Role.CONSUMER and g.name in keep}
    tensors = stored_tensors(model)
    return _masked(shared_copy(model, [tensors[key] for key in consumers]), graph, keep)


def _masked(twin: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """Zero the consumers' weights in place."""
    dropped = _dropped(graph, keep)
    tensors = stored_tensors(twin)
    with torch.no_grad():
        for group in graph.groups:
            for part in group.slices:
                if part.role is Role.CONSUMER and dropped.get(group.name):
                    tensor = tensors[part.tensor]
                    entries = chain.from_iterable(part.index[p] for p in dropped[group.name])
                    index = torch.tensor(list(entries), dtype=torch.int64, device=tensor.device)
                    tensor.index_fill_(part.dim, index, 0.0)
    return twin


def removed_entries(graph: ChannelGraph, keep: Keep) -> Removed:
    """What goes: entries by tensor and dimension."""
    removed: Removed = defaultdict(lambda: defaultdict(set))
    dropped = _dropped(graph, keep)
    for group in graph.groups:
        positions = dropped.get(group.name, [])
        for part in group.slices if positions else ():
            removed[part.tensor][part.dim].update(chain.from_iterable(part.index[p] for p in positions))
    return {key: dict(by_dim) for key, by_dim in removed.items()}


def _dropped(graph: ChannelGraph, keep: Keep) -> dict[str, list[int]]:
    sizes = {group.name: group.size for group in graph.groups}
    for name, positions in keep.items():
        if name not in sizes:
            raise ModelError(
                "There is no such channel group.",
                expected=f"one of {', '.join(list(sizes)[:8])}{' ...' if len(sizes) > 8 else ''}",
                got=name,
                remedy="Take the names from the graph's groups.",
            )
        _check_positions(name, positions, sizes[name])
    return {name: sorted(set(range(sizes[name])) - set(positions)) for name, positions in keep.items()}


def _check_positions(name: str, positions: Sequence[int], size: int) -> None:
    distinct = {int(position) for position in positions}
    if not distinct or len(distinct) < len(positions) or min(distinct) < 0 or max(distinct) >= size:
        raise ModelError(
            "The positions to keep do not fit the channel group.",
            expected=f"at least one, each once, from 0 to {size - 1}",
            got=f"{len(positions)} positions: {list(positions)[:8]}",
            where=name,
            remedy="Keep one position or more of every group; a layer without channels cannot run.",
        )


def _without(tensor: Tensor, removed: Mapping[int, set[int]]) -> Tensor:
    tensor = tensor.detach()
    for dim, entries in removed.items():
        kept = [entry for entry in range(tensor.size(dim)) if entry not in entries]
        tensor = tensor.index_select(dim, torch.tensor(kept, dtype=torch.int64, device=tensor.device))
    return tensor


def _groups_left(model: nn.Module, removed: Removed) -> dict[str, int]:
    """Groups of convolutions and GroupNorms after whole groups were removed (never parts of a group)."""
    counts = channel_groups(model)
    for path, count in counts.items():
        weight = f"{path}.weight"
        cut = removed.get(weight, {}).get(0)
        if cut:
            total = stored_tensors(model.get_submodule(path))["weight"].size(0)
            counts[path] = count * (total - len(cut)) // total
    return counts
