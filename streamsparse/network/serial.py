"""Channel graphs as plain JSON objects, and back, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar, get_args, get_type_hints

from streamsparse.errors import CorruptDataError
from streamsparse.network.runs import index_from_json, index_to_json
from streamsparse.types import (
    ChannelGraph,
    ChannelGroup,
    Consumer,
    FrozenChannels,
    LayerGeometry,
    Role,
    SizeAttribute,
    TensorSlice,
)

_Record = TypeVar("_Record", FrozenChannels, LayerGeometry, SizeAttribute)


def graph_to_json(graph: ChannelGraph) -> dict[str, object]:
    """The graph as an object that `json.dumps` takes; index maps are stored as runs."""
    return {
        "groups": [_group_to_json(group) for group in graph.groups],
        "frozen": [asdict(frozen) for frozen in graph.frozen],
        "layers": [asdict(layer) for layer in graph.layers.values()],
    }


def graph_from_json(value: object) -> ChannelGraph:
    """The graph that `graph_to_json` wrote, before or after a trip through JSON text.

    Raises:
        CorruptDataError: anything else; says where.
    """
    top = _object(value, {"groups", "frozen", "layers"}, "channel graph")
    groups = tuple(_group_from_json(item, i) for i, item in enumerate(_list(top["groups"], "groups")))
    frozen = tuple(_record(FrozenChannels, f, "frozen") for f in _list(top["frozen"], "frozen"))
    layers = [_record(LayerGeometry, layer, "layers") for layer in _list(top["layers"], "layers")]
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise _corrupt("group names that occur once", names, "groups")
    return ChannelGraph(groups, frozen, {layer.layer: layer for layer in layers})


def _group_to_json(group: ChannelGroup) -> dict[str, object]:
    return {
        "name": group.name,
        "size": group.size,
        "slices": [
            {"tensor": s.tensor, "dim": s.dim, "index": index_to_json(s.index), "role": s.role.value}
            for s in group.slices
        ],
        "consumers": [{"layer": c.layer, "inputs": index_to_json(c.inputs)} for c in group.consumers],
        "approximate": group.approximate,
        "trial_error": group.trial_error,
        "attributes": [asdict(attribute) for attribute in group.attributes],
    }


def _group_from_json(value: object, number: int) -> ChannelGroup:
    where = f"groups[{number}]"
    item = _object(value, {field.name for field in fields(ChannelGroup)}, where)
    name, size = _scalar(item["name"], str, where), _scalar(item["size"], int, where)
    if size < 1:
        raise _corrupt("at least one position", size, where)
    slices = tuple(_slice(s, size, f"{where}.slices") for s in _list(item["slices"], where))
    consumers = tuple(_consumer(c, size, f"{where}.consumers") for c in _list(item["consumers"], where))
    approximate, error = item["approximate"], item["trial_error"]
    return ChannelGroup(
        name,
        size,
        slices,
        consumers,
        None if approximate is None else _scalar(approximate, str, where),
        None if error is None else float(_scalar(error, (int, float), where)),
        tuple(_record(SizeAttribute, a, f"{where}.attributes") for a in _list(item["attributes"], where)),
    )


def _slice(value: object, size: int, where: str) -> TensorSlice:
    item = _object(value, {"tensor", "dim", "index", "role"}, where)
    if item["role"] not in list(Role):
        raise _corrupt(f"a role: {', '.join(Role)}", item["role"], where)
    tensor, dim = _scalar(item["tensor"], str, where), _scalar(item["dim"], int, where)
    return TensorSlice(tensor, dim, index_from_json(item["index"], size, f"{where} {tensor}"), Role(item["role"]))


def _consumer(value: object, size: int, where: str) -> Consumer:
    item = _object(value, {"layer", "inputs"}, where)
    layer = _scalar(item["layer"], str, where)
    return Consumer(layer, index_from_json(item["inputs"], size, f"{where} {layer}"))


def _record(kind: type[_Record], value: object, where: str) -> _Record:
    """A flat dataclass whose fields are scalars or (nested) tuples of integers."""
    hints = get_type_hints(kind)
    item = _object(value, set(hints), where)
    return kind(**{name: _field(item[name], hint, f"{where}.{name}") for name, hint in hints.items()})


def _field(value: object, hint: Any, where: str) -> Any:
    if hint in (str, int, bool):
        return _scalar(value, hint, where)
    if type(None) in get_args(hint):
        return None if value is None else _scalar(value, str, where)
    return tuple(_numbers(entry, where) for entry in _list(value, where))


def _numbers(value: object, where: str) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_scalar(entry, int, where) for entry in value)
    return _scalar(value, int, where)


def _scalar(value: object, kind: Any, where: str) -> Any:
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        raise _corrupt(getattr(kind, "__name__", "number"), value, where)
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise _corrupt("a list", value, where)
    return list(value)


def _object(value: object, keys: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != keys:
        raise _corrupt(f"an object of {', '.join(sorted(keys))}", value, where)
    return value


def _corrupt(expected: str, got: object, where: str) -> CorruptDataError:
    return CorruptDataError(
        "A stored channel graph is not valid.",
        expected=expected,
        got=str(got)[:200],
        where=where,
        remedy="Find the groups again from the model.",
    )
