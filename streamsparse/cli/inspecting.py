"""The command that looks at a run: inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, size_text

if TYPE_CHECKING:
    from streamsparse.types import ChannelGraph


def inspect(
    run: o.RunArgument,
    groups: Annotated[
        bool, typer.Option("--groups", help="List the channel groups and what is frozen, and why.")
    ] = False,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """What RUN holds, what is missing, and how large it is; reads only.

    Examples:

        streamsparse inspect runs/lenet

        streamsparse inspect runs/lenet --groups --json
    """
    from streamsparse.inspection import inspect_run
    from streamsparse.intake.captured import read_captured
    from streamsparse.network import graph_to_json
    from streamsparse.store import Run

    with command(as_json):
        opened = Run.at(run)
        graph = read_captured(opened).graph
        found = inspect_run(opened)
    if as_json:
        print_json({"run": run, **found, **({"graph": graph_to_json(graph)} if groups else {})})
    elif groups:
        show_groups(graph)
    else:
        _show(run, found)


def _show(run: str, found: dict[str, Any]) -> None:
    rows = [
        (stage["stage"], stage["state"], stage["detail"], size_text(stage["bytes"])) for stage in found["stages"]
    ]
    about = found["manifest"]
    data = f"{about['data']['images']:,} images of {about['data']['spec'] or 'given data'}"
    title = f"{run}: {about['model']['class']}, {data}, begun {about['created']}"
    print_table(title, {"stage": "left", "state": "left", "": "left", "size": "right"}, rows)


def show_groups(graph: ChannelGraph) -> None:
    """Channel groups with their consumers, and frozen channels with the reason."""
    rows = [
        (
            group.name,
            group.size,
            ", ".join(consumer.layer for consumer in group.consumers),
            "exact" if group.approximate is None else group.approximate,
            "" if group.trial_error is None else f"{group.trial_error:.1e}",
        )
        for group in graph.groups
    ]
    columns = {"group": "left", "channels": "right", "consumers": "left", "removal": "left", "trial error": "right"}
    print_table("Channels that can be removed", columns, rows)
    frozen = [
        (item.layer, item.channels, item.reason, item.operation or "", item.source or "") for item in graph.frozen
    ]
    columns = {"layer": "left", "channels": "right", "reason": "left", "operation": "left", "source": "left"}
    print_table("Channels that stay", columns, frozen)
