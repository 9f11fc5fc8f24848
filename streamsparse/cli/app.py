"""The application: every command by name."""

from __future__ import annotations

from typing import Annotated

import typer

from streamsparse.cli import (
    accumulating,
    capturing,
    improving,
    inspecting,
    measuring,
    merging,
    pruning,
    refitting,
    reporting,
    results,
    serving,
    solving,
    timing,
)

app = typer.Typer(
    name="streamsparse",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(capturing.demo)
app.command("prune")(pruning.prune)
app.command("capture")(capturing.capture)
app.command("accumulate")(accumulating.accumulate)
app.command("solve")(solving.solve)
app.command("sensitivity")(measuring.sensitivity)
app.command("improve")(improving.improve)
app.command("refit")(refitting.refit)
app.command("write")(results.write)
app.command("evaluate")(results.evaluate)
app.command("latency")(timing.latency)
app.command("report")(reporting.report)
app.command("inspect")(inspecting.inspect)
app.command("merge")(merging.merge)
app.command("serve")(serving.serve)
app.command("download")(serving.download)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"streamsparse {version('streamsparse')}")
        raise typer.Exit


@app.callback()
def _application(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Remove whole channels from trained convolutional networks, and re-estimate the weights that remain.

    A run goes from a model and calibration images to a smaller checkpoint:

        capture → accumulate → solve (→ refit) → write → evaluate → report

    `prune` does all of them in one go, `demo` does it on a LeNet that comes with the package. Every stage keeps
    its work in the directory RUN: a killed command, typed again, goes on where it was.

    Exit status: 0 done, 2 bad usage or bad input, 1 failure.
    """


def main() -> None:
    """Entry point of the `streamsparse` script."""
    app()
