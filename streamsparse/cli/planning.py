"""Plans on the screen: what was chosen, what would be, and what every budget would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamsparse.cli.console import print_json, print_table, say
from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from streamsparse.events import OnEvent
    from streamsparse.solve import Constraints, SolveSettings
    from streamsparse.solve.trade_offs import NetworkPoint
    from streamsparse.types import PrunePlan

_UNITS = {
    "divergence": "predicted loss (nats)",
    "squared difference": "predicted loss (of the outputs' variance)",
    "error": "sum of held-out errors",
}


def show_plan(plan: PrunePlan) -> None:
    """Channels, held-out error and predicted loss by group."""
    rows = [
        (
            group,
            plan.sizes[group],
            len(kept),
            f"{plan.predicted_errors[group]:.4f}",
            f"{plan.predicted_losses[group]:.4f}" if group in plan.predicted_losses else "",
            plan.methods[group],
        )
        for group, kept in plan.keep.items()
    ]
    columns = {
        "group": "left", "channels": "right", "kept": "right", "held-out error": "right", "predicted loss": "right",
        "found by": "left",
    }  # fmt: skip
    title = (
        f"{plan.costs.parameters:,} of {plan.original_costs.parameters:,} parameters stay "
        f"(sparsity {plan.sparsity:.2%}), {plan.costs.macs:,} of {plan.original_costs.macs:,} MACs"
    )
    print_table(title, columns, rows)
    if plan.predicted_losses:
        say(f"{_UNITS.get(plan.loss_kind, plan.loss_kind)}: {sum(plan.predicted_losses.values()):.4g}")
    if plan.measured_loss is not None:
        say(f"measured on the cut network, weights independent: {plan.measured_loss:.4g}")


def show_dry_run(
    run: str,
    budget: str | None,
    channels: dict[str, int] | None,
    constraints: Constraints,
    settings: SolveSettings,
    as_json: bool,
) -> None:
    """The plan, where all fronts are committed; else the regressions that are to be solved. Writes nothing."""
    from streamsparse.intake.captured import read_captured
    from streamsparse.solve import check_request
    from streamsparse.solve.finding import committed_fronts, whole_here
    from streamsparse.solve.stage import decision_of
    from streamsparse.store import Run

    opened = Run.at(run)
    captured = read_captured(opened)
    asked = budget is not None or channels is not None or bool(constraints.drop)
    if asked:
        sizes = {group.name: group.size for group in captured.graph.groups}
        check_request(budget, channels, sizes, whole_here(captured, constraints), constraints)
    fronts = committed_fronts(opened, captured, settings, constraints) if asked else None
    if fronts is None:
        _show_regressions(opened.url, as_json)
        return
    plan = decision_of(opened, captured, fronts, constraints, budget).plan(channels)
    if as_json:
        print_json({"plan": plan, "sparsity": plan.sparsity})
    else:
        show_plan(plan)


def _show_regressions(run: str, as_json: bool) -> None:
    from streamsparse.intake.captured import read_captured
    from streamsparse.store import Run
    from streamsparse.store.statistics import Statistics

    opened = Run.at(run)
    graph, present = read_captured(opened).graph, set(Statistics(opened))
    rows = [
        (group.name, group.size, consumer.layer, graph.layers[consumer.layer].columns, consumer.layer in present)
        for group in graph.groups
        for consumer in group.consumers
        if consumer.layer in graph.layers
    ]
    if as_json:
        names = ("group", "channels", "consumer", "columns", "statistics")
        print_json({"groups": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    columns = {"group": "left", "channels": "right", "consumer": "left", "columns": "right", "statistics": "left"}
    print_table("Regressions to solve", columns, rows)


def refuse_counts(channels: dict[str, int] | None) -> None:
    """A trade-off leaves all counts open.

    Raises:
        UsageError: some are given.
    """
    if channels:
        raise UsageError(
            "A trade-off over budgets leaves the counts open.",
            expected="--front or several --budget, without --channels",
            got=f"--channels for {', '.join(channels)}",
        )


def show_trade_off(
    run: str,
    budgets: Sequence[str],
    constraints: Constraints,
    settings: SolveSettings,
    on_event: OnEvent,
    as_json: bool,
) -> None:
    """What several budgets, or the whole range of them, would give."""
    from streamsparse.solve.trade_offs import trade_off

    points, kind = trade_off(run, budgets=budgets, constraints=constraints, settings=settings, on_event=on_event)
    if as_json:
        print_json({"run": run, "loss_kind": kind, "points": points})
        return
    rows = [_row(point) for point in points]
    columns = {
        "budget": "left", "parameters": "right", "MACs": "right", "loss": "right", "channels by group": "left",
    }  # fmt: skip
    print_table(f"What every budget would give; loss: {_UNITS.get(kind, kind)}", columns, rows)


def _row(point: NetworkPoint) -> tuple[str, ...]:
    counts = " ".join(map(str, point.counts.values()))
    costs = point.costs
    return (point.budget, f"{costs.parameters:,}", f"{costs.macs:,}", f"{point.predicted_loss:.4g}", counts)
