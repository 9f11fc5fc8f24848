"""The command that re-estimates a solution's weights: refit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, say
from streamsparse.cli.solving import show_solution

if TYPE_CHECKING:
    from streamsparse.types import Solution

Recalibrate = Annotated[
    bool, typer.Option("--recalibrate", help="Estimate the running statistics of every BatchNorm anew afterwards.")
]


def refit(
    run: o.RunArgument,
    data: o.CapturedData = None,
    stages: o.Stages = None,
    recalibrate: Recalibrate = False,
    batch_size: o.BatchSize = 250,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Re-estimate the solution's weights in order: each layer sees what the pruned layers before it produce.

    Takes one more pass over the calibration images per stage; the choice of channels stays as it is. With
    --recalibrate the running statistics of every BatchNorm follow, each behind those before it: one pass as far as
    that layer, through the network that is already cut. It helps where most channels go, and only with images like
    those of the training: statistics that came from other data are replaced, too.

    Examples:

        streamsparse refit runs/lenet

        streamsparse refit runs/vgg --stages 4 --device cuda

        streamsparse refit runs/resnet --recalibrate
    """
    from streamsparse.capture import CaptureSettings
    from streamsparse.sequential import refit as refit_stage
    from streamsparse.sequential import require_images
    from streamsparse.store import Run
    from streamsparse.store.solution import read_solution

    o.use_threads(threads)
    with command(as_json) as bars:
        opened = Run.at(run)
        about, solution = opened.manifest(), read_solution(opened)
        require_images(opened, about)
        if dry_run:
            _show_refit_plan(solution, stages, recalibrate, as_json)
            return
        dataset = o.captured_data(about, data)
        settings = CaptureSettings(batch_images=batch_size, device=device)
        solution = refit_stage(
            opened, dataset, stages=stages, recalibrate=recalibrate, settings=settings, on_event=bars
        )
    if as_json:
        print_json({"run": run, "solution": solution, "seconds": bars.seconds})
    else:
        show_solution(solution)
        say(f"Next: streamsparse write {run}")


def _show_refit_plan(solution: Solution, stages: int | None, recalibrate: bool, as_json: bool) -> None:
    layers = [error.layer for error in solution.layers]
    if as_json:
        print_json({"layers": layers, "stages": stages, "recalibrate": recalibrate})
    else:
        say(f"The weights behind {', '.join(solution.plan.keep)} would be estimated anew, in order.")
        if recalibrate:
            say("The running statistics of every BatchNorm would follow.")
