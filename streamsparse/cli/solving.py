"""The command between the statistics and the choice of channels: solve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say

if TYPE_CHECKING:
    from streamsparse.types import LayerReport, Solution


def solve(
    run: o.RunArgument,
    budget: o.BudgetOption = None,
    channels: o.Channels = None,
    method: o.MethodOption = "best",
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Choose the channels that stay and re-estimate the weights behind them, from statistics alone.

    The best support for every number of channels is found once; another budget then takes seconds.

    Examples:

        streamsparse solve runs/lenet --budget params=0.2

        streamsparse solve runs/lenet --budget sparsity=0.887

        streamsparse solve runs/lenet --channels conv1=8,fc1=40,fc2=18
    """
    from streamsparse.solve import SolveSettings
    from streamsparse.solve import solve as solve_stage

    o.use_threads(threads)
    with command(as_json) as bars:
        settings = SolveSettings(method)  # type: ignore[arg-type]  # validated there
        if dry_run:
            _show_solve_plan(run, as_json)
            return
        solution = solve_stage(
            run, budget=budget, channels=o.parse_channels(channels), settings=settings, on_event=bars
        )
    if as_json:
        print_json({"run": run, "solution": solution, "sparsity": solution.plan.sparsity, "seconds": bars.seconds})
    else:
        show_solution(solution)
        say(f"Next: streamsparse refit {run} (weights in order), or streamsparse write {run}")


def _show_solve_plan(run: str, as_json: bool) -> None:
    from streamsparse.intake.captured import read_captured
    from streamsparse.store import Run
    from streamsparse.store.statistics import Statistics

    opened = Run.at(run)
    graph, present = read_captured(opened).graph, set(Statistics(opened))
    rows = [
        (group.name, group.size, consumer.layer, graph.layers[consumer.layer].columns, consumer.layer in present)
        for group in graph.groups
        for consumer in group.consumers
    ]
    if as_json:
        names = ("group", "channels", "consumer", "columns", "statistics")
        print_json({"groups": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    columns = {"group": "left", "channels": "right", "consumer": "left", "columns": "right", "statistics": "left"}
    print_table("Regressions to solve", columns, rows)


def show_solution(solution: Solution) -> None:
    """Channels per group, and errors per re-estimated layer."""
    plan = solution.plan
    rows = [
        (group, plan.sizes[group], len(kept), f"{plan.predicted_errors[group]:.4f}", plan.methods[group])
        for group, kept in plan.keep.items()
    ]
    columns = {"group": "left", "channels": "right", "kept": "right", "held-out error": "right", "found by": "left"}
    title = (
        f"{plan.costs.parameters:,} of {plan.original_costs.parameters:,} parameters stay "
        f"(sparsity {plan.sparsity:.2%}), {plan.costs.macs:,} of {plan.original_costs.macs:,} MACs"
    )
    print_table(title, columns, rows)
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
