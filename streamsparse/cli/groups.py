"""Channel groups and frozen channels, for people (80 columns) and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from streamsparse.cli.console import print_table, say

if TYPE_CHECKING:
    from streamsparse.types import ChannelGraph, ChannelGroup, FrozenChannels

_NAMES = 3
"""Layers that are listed by name; the rest is counted."""


def groups_json(graph: ChannelGraph, observed: Collection[str] | None) -> dict[str, Any]:
    """The graph, counts, and the groups that solve leaves whole, with the reason.

    Args:
        graph: from `find_groups`.
        observed: captured layers, or None without a capture.
    """
    from streamsparse.network import graph_to_json
    from streamsparse.network.observation import whole_groups

    whole = whole_groups(graph, observed)
    outputs = sum(item.channels for item in graph.frozen if item.operation == "output")
    summary = {
        "groups": len(graph.groups),
        "positions": sum(group.size for group in graph.groups),
        "whole": len(whole),
        "approximate": sum(group.approximate is not None for group in graph.groups),
        "frozen": sum(item.channels for item in graph.frozen) - outputs,
        "outputs": outputs,
        "max_trial_error": max((group.trial_error or 0.0 for group in graph.groups), default=0.0),
    }
    return {"summary": summary, "graph": graph_to_json(graph), "whole": whole}


def show_groups(title: str, graph: ChannelGraph, observed: Collection[str] | None = None) -> None:
    """A line of counts, channel groups with their consumers, and frozen channels with the reason."""
    from streamsparse.network.observation import whole_groups

    found, whole = groups_json(graph, observed)["summary"], whole_groups(graph, observed)
    say(
        f"{title}\n"
        f"{found['groups']} groups of {found['positions']:,} positions can be cut; "
        f"{found['frozen']:,} channels are frozen, {found['outputs']:,} outputs.\n"
        f"Masked and cut agree in float64: relative error {found['max_trial_error']:.1e} at most."
    )
    if whole:
        say(f"{len(whole)} groups stay whole in a solve: their consumers cannot be re-estimated.")
    rows = [
        (
            group.name,
            group.size,
            _listed([one.layer for one in group.consumers]),
            _removal(group, whole),
        )
        for group in graph.groups
    ]
    columns = {"group": "left", "positions": "right", "consumers": "left", "removal": "left"}
    if rows:
        print_table("Channels that can be removed", columns, rows)
    if graph.frozen:
        columns = {"channels": "right", "layers": "left", "why they stay": "left"}
        print_table("Channels that stay", columns, list(_frozen_rows(graph)))


def _removal(group: ChannelGroup, whole: dict[str, str]) -> str:
    if group.name in whole:
        return f"cannot be re-estimated: {whole[group.name]}"
    return "exact" if group.approximate is None else f"approximate: {group.approximate}"


def _frozen_rows(graph: ChannelGraph) -> Iterator[tuple[str, str, str]]:
    """One row per cause, with all layers that it freezes."""
    by_cause: dict[tuple[str, ...], list[FrozenChannels]] = defaultdict(list)
    for item in graph.frozen:
        by_cause[item.reason, item.operation or "", _short(item.source or "")].append(item)
    for (reason, operation, source), items in by_cause.items():
        channels = sum(item.channels for item in items)
        why = [
            reason,
            *([f"operation {operation}"] if operation not in ("", "output") else []),
            *filter(None, [source]),
        ]
        yield f"{channels:,}", _listed([item.layer for item in items]), "\n".join(why)


def _short(source: str) -> str:
    """`/long/path/to/models/net.py:12: code` -> `models/net.py:12: code`."""
    path, colon, rest = source.partition(":")
    return "/".join(path.split("/")[-2:]) + colon + rest


def _listed(names: list[str]) -> str:
    """The first names; how many more there are."""
    distinct = list(dict.fromkeys(name or "(the model itself)" for name in names))
    more = len(distinct) - _NAMES
    return ", ".join(distinct[:_NAMES]) + (f" and {more} more" if more > 0 else "")
