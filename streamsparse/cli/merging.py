"""The command that brings the statistics of several sites together: merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say, size_text

if TYPE_CHECKING:
    from streamsparse.merging import MergePlan

_Runs = Annotated[list[str], typer.Argument(metavar="RUN_A RUN_B ...", help="Runs with complete statistics.")]
_Into = Annotated[str, typer.Option("--into", metavar="RUN", help="The new run, or one that this merge began.")]


def merge(
    runs: _Runs,
    into: _Into,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Add the statistics of several runs of one model into a new run; no image and no activation moves.

    For sites that may not share their data: each captures and accumulates at home, and hands over its RUN without
    activations (manifest.json, model/ and statistics/). The sums are added fold by fold; what comes out is what one
    run over all the images would have given. The runs must be of one model with the same weights, image size,
    folds and products, over different images.

    The merged run can be solved, written and evaluated. It cannot be refitted in order: that takes new passes over
    images that are not there. Typed again after a kill, the command goes on with the first layer that is missing.

    Examples:

        streamsparse merge sites/north sites/south --into runs/both

        streamsparse merge sites/* --into runs/all --dry-run

        streamsparse merge sites/north sites/south --into runs/both --json
    """
    from streamsparse.merging import merge as merge_runs
    from streamsparse.merging import plan_merge

    with command(as_json) as bars:
        if dry_run:
            _show_plan(plan_merge(runs), into, as_json)
            return
        report = merge_runs(runs, into, on_event=bars)
    if as_json:
        print_json({"run": into, "report": report, "seconds": bars.seconds})
    else:
        say(
            f"{into}: {report.layers} layers of {report.runs} runs merged, {report.reused_layers} reused, "
            f"{report.images:,} images. Next: streamsparse solve {into} --budget params=0.5"
        )


def _show_plan(plan: MergePlan, into: str, as_json: bool) -> None:
    if as_json:
        print_json({"run": into, "plan": plan, "bytes": sum(layer.bytes for layer in plan.layers)})
        return
    rows = [(layer.layer, layer.columns, size_text(layer.bytes)) for layer in plan.layers]
    total = size_text(sum(layer.bytes for layer in plan.layers))
    title = f"{plan.images:,} images of {len(plan.runs)} runs, {plan.folds} folds, {total} into {into}"
    print_table(title, {"layer": "left", "columns": "right", "statistics": "right"}, rows)
