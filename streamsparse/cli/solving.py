"""The command between the statistics and the choice of channels: solve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.cli import constraining as c
from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say
from streamsparse.cli.planning import refuse_counts, show_dry_run, show_plan, show_trade_off

if TYPE_CHECKING:
    from streamsparse.types import LayerReport, Solution


def solve(
    run: o.RunArgument,
    budget: o.Budgets = None,
    channels: o.Channels = None,
    round_to: c.RoundTo = 1,
    min_channels: c.MinChannels = "1",
    keep: c.Keep = None,
    drop: c.Drop = None,
    leave: c.Leave = None,
    front: Annotated[
        bool,
        typer.Option(
            "--front", help="Show the whole trade-off of parameters and predicted loss, and decide nothing."
        ),
    ] = False,
    method: o.MethodOption = "best",
    executor: Annotated[
        str, typer.Option("--executor", help="serial, or processes: groups side by side on a local Dask cluster.")
    ] = "serial",
    workers: o.Workers = None,
    scheduler: o.Scheduler = None,
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Choose the channels that stay and re-estimate the weights behind them, from statistics alone.

    The best support for every number of channels is found once; another budget then takes seconds. Of all
    architectures within the budget the one of least predicted loss is wanted: the sum of what cutting each group
    does to the model's output, where `streamsparse sensitivity` has measured it, else of the held-out errors.

    Examples:

        streamsparse solve runs/lenet --budget params=0.2

        streamsparse solve runs/lenet --budget sparsity=0.887

        streamsparse solve runs/lenet --channels conv1=8,fc1=40,fc2=18

        streamsparse solve runs/r18 --budget macs=0.5 --round-to 8 \\
            --min-channels 0.1 --leave conv1 --leave 'layer4.*'

        streamsparse solve runs/lenet --budget params=0.2 --keep conv1=0,3-5

        streamsparse solve runs/r18 --budget latency=0.5@cpu

        streamsparse solve s3://bucket/r50 --budget params=0.3 --scheduler tcp://10.0.0.1:8786

        streamsparse solve runs/r18 --front --json
    """
    from streamsparse.solve import SolveSettings
    from streamsparse.solve import solve as solve_stage

    o.use_threads(threads)
    with command(as_json) as bars:
        settings = SolveSettings(method)  # type: ignore[arg-type]  # validated there
        constraints = c.parse_constraints(round_to, min_channels, keep, drop, leave)
        budgets, counts = budget or [], o.parse_channels(channels)
        one = budgets[0] if budgets else None
        if dry_run:
            show_dry_run(run, one, counts, constraints, settings, as_json)
            return
        if front or len(budgets) > 1:
            refuse_counts(counts)
            show_trade_off(run, budgets, constraints, settings, bars, as_json)
            return
        solution = solve_stage(
            run, budget=one, channels=counts, constraints=constraints, settings=settings, executor=executor,
            scheduler=scheduler, workers=workers, on_event=bars,
        )  # fmt: skip
    if as_json:
        print_json({"run": run, "solution": solution, "sparsity": solution.plan.sparsity, "seconds": bars.seconds})
    else:
        show_solution(solution)
        say(f"Next: streamsparse refit {run} (weights in order), or streamsparse write {run}")


def show_solution(solution: Solution) -> None:
    """Channels per group, and errors per re-estimated layer."""
    show_plan(solution.plan)
    layers = [
        (error.layer, f"{error.training_error:.4f}", f"{error.held_out_error:.4f}", f"{error.ridge:.0e}")
        for error in solution.layers
    ]
    columns = {"layer": "left", "training error": "right", "held-out error": "right", "ridge": "right"}
    print_table(f"Re-estimated weights ({solution.mode})", columns, layers)


def show_layers(report: tuple[LayerReport, ...]) -> None:
    """Every layer before and after."""
    rows = [
        (
            layer.layer,
            f"{layer.inputs_kept} of {layer.inputs}",
            f"{layer.outputs_kept} of {layer.outputs}",
            f"{layer.costs.parameters:,}",
            f"{layer.costs.macs:,}",
            "" if layer.held_out_error is None else f"{layer.held_out_error:.4f}",
        )
        for layer in report
    ]
    columns = {
        "layer": "left", "inputs": "right", "outputs": "right", "parameters": "right", "MACs": "right",
        "held-out error": "right",
    }  # fmt: skip
    print_table("Layers", columns, rows)
