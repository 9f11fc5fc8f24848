"""Channel graphs as JSON: back and forth, compact, and checked."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import adversarial_nets as nets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsparse.errors import CorruptDataError
from streamsparse.network import find_groups, graph_from_json, graph_to_json
from streamsparse.network.runs import index_from_json, index_to_json
from streamsparse.types import ChannelGraph, ChannelGroup, Consumer, Role, SizeAttribute, TensorSlice


@st.composite
def index_maps(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """Distinct entries, equally many for each position."""
    size, each = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    flat = draw(st.lists(st.integers(0, 200), min_size=size * each, max_size=size * each, unique=True))
    return tuple(tuple(flat[p * each : (p + 1) * each]) for p in range(size))


@given(index_maps())
def test_any_index_map_survives(index: tuple[tuple[int, ...], ...]) -> None:
    assert index_from_json(json.loads(json.dumps(index_to_json(index))), len(index), "here") == index


@pytest.mark.parametrize(
    "index",
    [
        tuple((p,) for p in range(512)),
        tuple(tuple(range(49 * p, 49 * p + 49)) for p in range(512)),
        tuple((p, p + 512) for p in range(512)),
        tuple(tuple(range(p, 128, 8)) for p in range(8)),
    ],
    ids=["identity", "flatten", "concat", "strided"],
)
def test_usual_index_maps_are_few_runs(index: tuple[tuple[int, ...], ...]) -> None:
    assert len(json.dumps(index_to_json(index))) < 400


@pytest.mark.parametrize("net", [nets.SplitTrunk, nets.LayerNormalised, nets.PaddedShortcut, nets.LiteralView])
def test_graphs_survive(net: type) -> None:
    graph = find_groups(net(), nets.IMAGE)
    assert graph_from_json(json.loads(json.dumps(graph_to_json(graph)))) == graph


def small_graph() -> ChannelGraph:
    """A graph by hand, with every field in use."""
    part = TensorSlice("a.weight", 0, ((0,), (1,)), Role.PRODUCER)
    use = TensorSlice("b.weight", 1, ((0,), (1,)), Role.CONSUMER)
    consumer = Consumer("b", ((0,), (1,)))
    group = ChannelGroup("a", 2, (part, use), (consumer,), None, 1e-16, (SizeAttribute("c", "width", 1),))
    return ChannelGraph((group,), (), {})


def test_size_attributes_survive() -> None:
    assert graph_from_json(json.loads(json.dumps(graph_to_json(small_graph())))) == small_graph()


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("groups", to=None),
        _set("layers", to={"a": 1}),
        _set("extra", to=1),
        _set("groups", 0, "size", to=3),
        _set("groups", 0, "size", to=True),
        _set("groups", 0, "name", to=7),
        _set("groups", 0, "trial_error", to="small"),
        _set("groups", 0, "slices", 0, "role", to="spectator"),
        _set("groups", 0, "slices", 0, "index", "runs", to=[[0, 1 << 40, 1]]),
        _set("groups", 0, "slices", 0, "index", "runs", to=[[-1, 2, 1]]),
        _set("groups", 0, "slices", 0, "index", "runs", to=[[0, 2, 0]]),
        _set("groups", 0, "slices", 0, "index", "runs", to=[[0, 2]]),
        _set("groups", 0, "slices", 0, "index", "order", to="none"),
        _set("groups", 0, "slices", 0, "index", to=[0, 1]),
        _set("groups", 0, "attributes", to=[{"module": "c"}]),
    ],
)
def test_tampered_graphs_are_refused(change: Callable[[Any], None]) -> None:
    value = copy.deepcopy(graph_to_json(small_graph()))
    change(value)
    with pytest.raises(CorruptDataError, match="not valid"):
        graph_from_json(value)
