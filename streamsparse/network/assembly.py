"""From united atoms to channel groups: which entries of which tensors each position owns.

Classes of atoms that own entries of the same tensors, equally many of each, are the positions of one group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from streamsparse.network.labels import NO_CHANNEL, Atoms, Cause, Classes
from streamsparse.network.propagation import Propagation, Slot, producer_name
from streamsparse.types import ChannelGroup, Consumer, FrozenChannels, Role, SizeAttribute, TensorSlice

_SINGLE = Cause("a single position: nothing to choose")
_NO_CONSUMER = Cause("no layer consumes these channels")
_NO_PRODUCER = Cause("no layer makes these channels")


@dataclass(frozen=True)
class _Table:
    """Every entry of every bound dimension that belongs to a class, sorted by class, slot and entry."""

    classes: Atoms
    slots: Atoms
    entries: Atoms


def assemble(
    state: Propagation, names: Mapping[str, tuple[str, ...]], model: nn.Module
) -> tuple[tuple[ChannelGroup, ...], tuple[FrozenChannels, ...]]:
    """The groups that may be offered, and what is frozen.

    Args:
        state: after all graphs were followed.
        names: all state_dict keys of the tensor that a key stands for (tied parameters have several).
        model: whose modules may hold sizes as attributes.
    """
    _freeze_whole(state, names)
    classes, slots = state.table.classes(), list(state.bound)
    members = _members(state, slots, classes)
    groups: list[ChannelGroup] = []
    refused: dict[int, Cause] = {}
    for signature, positions in _by_signature(members, classes).items():
        cause = _refusal(state, slots, signature, positions)
        if cause is None:
            group = _group(state, slots, signature, positions, classes, names)
            groups.append(replace(group, attributes=_attributes(state, model, classes, positions)))
        else:
            refused.update(dict.fromkeys((one for one, _ in positions), cause))
    order = {slot[0]: place for place, slot in reversed(list(enumerate(slots)))}
    groups.sort(key=lambda group: order[group.slices[0].tensor])
    return _uniquely_named(groups), tuple(_frozen(state, classes, refused))


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every state_dict key with all keys of the same tensor, itself included."""
    by_tensor: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_tensor[id(tensor)].append(name)
    return {name: tuple(same) for same in by_tensor.values() for name in same}


def _freeze_whole(state: Propagation, names: Mapping[str, tuple[str, ...]]) -> None:
    """What an operation uses whole cannot be cut, under whichever of its names."""
    for key, cause in state.whole.items():
        for (bound, _), slot in state.bound.items():
            if bound in names.get(key, (key,)):
                state.table.freeze(slot.atoms, cause)


def _members(state: Propagation, slots: list[Slot], classes: Classes) -> _Table:
    atoms = [state.bound[slot].atoms for slot in slots]
    if not atoms:
        return _Table(*(np.zeros(0, np.int64) for _ in range(3)))
    flat = np.concatenate(atoms)
    number = np.repeat(np.arange(len(atoms)), [a.size for a in atoms])
    entry = np.concatenate([np.arange(a.size) for a in atoms])
    real = flat != NO_CHANNEL
    of_class, number, entry = classes.of_atom[flat[real]], number[real], entry[real]
    order = np.lexsort((entry, number, of_class))
    return _Table(of_class[order], number[order], entry[order])


Signature = tuple[tuple[int, int], ...]
Position = tuple[int, dict[int, tuple[int, ...]]]


def _by_signature(members: _Table, classes: Classes) -> dict[Signature, list[Position]]:
    """Free classes by the slots they own entries of and how many: (class, entries by slot)."""
    found: dict[Signature, list[Position]] = defaultdict(list)
    borders = np.flatnonzero(np.diff(members.classes)) + 1
    for first, last in zip([0, *borders], [*borders, members.classes.size], strict=True):
        if first == last or int(members.classes[first]) in classes.cause:
            continue
        entries: dict[int, list[int]] = defaultdict(list)
        for slot, entry in zip(
            members.slots[first:last].tolist(), members.entries[first:last].tolist(), strict=True
        ):
            entries[slot].append(entry)
        signature = tuple((slot, len(owned)) for slot, owned in entries.items())
        found[signature].append((int(members.classes[first]), {s: tuple(e) for s, e in entries.items()}))
    return found


def _refusal(
    state: Propagation, slots: list[Slot], signature: Signature, positions: list[Position]
) -> Cause | None:
    roles = [state.bound[slots[slot]].role for slot, _ in signature]
    if Role.PRODUCER not in roles and Role.PASS_THROUGH not in roles:
        return _NO_PRODUCER
    if Role.CONSUMER not in roles:
        return _NO_CONSUMER
    return _SINGLE if len(positions) == 1 else None


def _group(
    state: Propagation,
    slots: list[Slot],
    signature: Signature,
    positions: list[Position],
    classes: Classes,
    names: Mapping[str, tuple[str, ...]],
) -> ChannelGroup:
    by_role: dict[Role, list[TensorSlice]] = {role: [] for role in Role}
    consumers: list[Consumer] = []
    leader = min((s for s, _ in signature), key=lambda s: (state.bound[slots[s]].role != Role.PRODUCER, s))
    positions = sorted(positions, key=lambda position: position[1][leader])
    for slot, _ in signature:
        (key, dim), role = slots[slot], state.bound[slots[slot]].role
        index = tuple(entries[slot] for _, entries in positions)
        by_role[role] += [TensorSlice(name, dim, index, role) for name in names[key]]
        if role is Role.CONSUMER:
            consumers.append(Consumer(key.rpartition(".")[0], index))
    texts = (classes.approximate.get(one) for one, _ in positions)
    return ChannelGroup(
        name=producer_name(slots[leader][0]),
        size=len(positions),
        slices=tuple(part for role in Role for part in by_role[role]),
        consumers=tuple(consumers),
        approximate=next((text for text in texts if text is not None), None),
    )


def _attributes(
    state: Propagation, model: nn.Module, classes: Classes, positions: list[Position]
) -> tuple[SizeAttribute, ...]:
    """Integer attributes that hold a size the model's code gave to an operation; the trial checks the guess."""
    found: dict[SizeAttribute, None] = {}
    owned = np.array([one for one, _ in positions], np.int64)
    for literal in state.sizes:
        here = int(np.isin(classes.of_atom[literal.atoms], owned).sum())
        if here == 0 or here % len(positions):
            continue
        for name, value in vars(model.get_submodule(literal.module)).items():
            if type(value) is int and value == literal.size:
                found[SizeAttribute(literal.module, name, here // len(positions))] = None
    return tuple(found)


def _uniquely_named(groups: list[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """Groups that share their first producer (some of its channels take another way) are numbered: conv1#2."""
    seen: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        name = group.name if number == 1 else f"{group.name}#{number}"
        named.append(replace(group, name=name))
    return tuple(named)


def _frozen(state: Propagation, classes: Classes, refused: Mapping[int, Cause]) -> Iterator[FrozenChannels]:
    """Frozen channels by the layer that makes them and the cause."""
    causes = {**refused, **classes.cause}
    ends = [*(first for first, _ in state.table.owners), state.table.count][1:]
    for (first, owner), last in zip(state.table.owners, ends, strict=True):
        counts: dict[Cause, int] = defaultdict(int)
        for one in classes.of_atom[first:last].tolist():
            if one in causes:
                counts[causes[one]] += 1
        for cause, channels in counts.items():
            yield FrozenChannels(owner, channels, cause.reason, cause.operation, cause.source)
