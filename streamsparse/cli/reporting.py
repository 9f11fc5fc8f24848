"""The command that shows what came of a run: report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_renderables, say

if TYPE_CHECKING:
    from streamsparse.report.facts import Facts


def report(
    run: o.RunArgument,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", help="Directory for the report; RUN/report if left out. A run in a bucket needs one."
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="html: one self-contained page; json, csv: its data; png, svg: its figures one by one, for papers "
            "and slides. Several with commas.",
        ),
    ] = "html,json,csv",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a directory that holds other files, beside them.")
    ] = False,
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Show what a run came to: what was pruned, what it costs and gains, how sure that is, and what it took.

    Writes report.html (needs no network to view), report.json, and layers.csv, groups.csv, points.csv and
    stages.csv, and prints a summary. It works at any stage: what a run does not hold yet is left out, and the notes
    say so. Measured accuracies and errors come from `streamsparse evaluate`, losses from `sensitivity`.

    The run is only read. Statistics are looked at anew for the conditioning of each layer and for the paper's path
    of the three largest groups that are not too wide: seconds for a LeNet, a minute or so for a ResNet-18.

    Examples:

        streamsparse report runs/lenet

        streamsparse report runs/lenet --format svg,png --out figures

        streamsparse report s3://bucket/r50 --out reports/r50 --json
    """
    from streamsparse.reporting import report as report_stage
    from streamsparse.reporting.stage import FIGURES, parse_formats

    o.use_threads(threads)
    with command(as_json) as bars:
        wanted = parse_formats(formats.split(","))
        if dry_run:
            _show_plan(run, out, wanted, overwrite, as_json)
            return
        found = report_stage(run, out, formats=wanted, overwrite=overwrite, on_event=bars)
    if as_json:
        from streamsparse.report.export import headline

        paths = [str(path) for path in found.paths]
        summary = {**headline(found.facts), "notes": found.facts.notes}
        print_json({"run": run, "paths": paths, **summary, "seconds": bars.seconds})
        return
    _show(found.facts)
    own = [path for path in found.paths if path.parent == found.directory]
    for path in own:
        say(f"Written: {path}")
    if len(own) < len(found.paths):
        say(f"Written: {len(found.paths) - len(own)} figures in {found.directory / FIGURES}")


def _show_plan(run: str, out: str | None, formats: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    from streamsparse.inspection import inspect_run
    from streamsparse.reporting.stage import report_directory
    from streamsparse.store import Run

    opened = Run.at(run)
    stages = {stage["stage"]: stage["state"] for stage in inspect_run(opened)["stages"]}
    directory = str(report_directory(opened, out, overwrite=overwrite))
    if as_json:
        print_json({"run": run, "directory": directory, "formats": formats, "stages": stages})
    else:
        states = ", ".join(f"{stage} {state}" for stage, state in stages.items())
        say(f"Would write {', '.join(formats)} to {directory}. The run: {states}.")


def _show(facts: Facts) -> None:
    """The summary on standard output."""
    from streamsparse.report.tables import tables

    print_renderables(tables(facts))
    for note in facts.notes:
        say(f"Note: {note}")
