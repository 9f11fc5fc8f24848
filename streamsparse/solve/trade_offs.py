"""The whole trade-off of a network: what every budget would give, from fronts that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamsparse.errors import BudgetError
from streamsparse.events import OnEvent, ignore
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.costs import CostModel
from streamsparse.solve.allocation import least_loss, whole_units
from streamsparse.solve.architecture import Architecture, Choices, CostTable
from streamsparse.solve.budget import QUANTITIES, cost_of
from streamsparse.solve.constraints import Constraints
from streamsparse.solve.finding import RunFronts, find_constrained_fronts, find_fronts, whole_here
from streamsparse.solve.fronts import GroupFront, SolveSettings
from streamsparse.solve.plan import check_request
from streamsparse.solve.stage import decision_of, losses_of
from streamsparse.store import Run
from streamsparse.types import Costs, PrunePlan

POINTS = 20


@dataclass(frozen=True)
class NetworkPoint:
    """What one budget gives.

    Attributes:
        budget: as text, "params=0.2".
        fraction: of the original's parameters, MACs or bytes (whichever the budget bounds) that stay.
        costs: of the network.
        predicted_loss: sum over the groups.
        counts: kept positions by group.
    """

    budget: str
    fraction: float
    costs: Costs
    predicted_loss: float
    counts: dict[str, int]


def network_front(
    fronts: Mapping[str, GroupFront],
    costs: CostModel,
    losses: Mapping[str, np.ndarray],
    quantity: str = "params",
    points: int | Sequence[float] = POINTS,
    constraints: Constraints | None = None,
) -> tuple[NetworkPoint, ...]:
    """The network of least predicted loss within every budget; takes some 50 ms per budget for 15 groups.

    Without the descent from the whole network that `allocate` adds: in rare cases that finds a slightly better one.

    Args:
        fronts: by group.
        costs: of every architecture.
        losses: by group and count, (positions + 1,).
        quantity: "params", "macs" or "bytes".
        points: fractions of the original, or how many, spread geometrically from the least possible to all.
        constraints: see there.

    Raises:
        BudgetError: an unknown quantity, or a fraction that no architecture meets.
    """
    if quantity not in QUANTITIES:
        raise BudgetError("Unknown quantity.", expected=" | ".join(QUANTITIES), got=quantity)
    constraints = constraints or Constraints()
    choices = [
        Choices.of(
            name, losses[name], costs, constraints.allowed(name, len(losses[name]) - 1), front.front.supports
        )
        for name, front in fronts.items()
    ]
    table, whole = CostTable(costs, quantity, choices), cost_of(costs, quantity, {})
    least = round(Architecture(table, [0] * len(choices)).cost)
    limits = np.geomspace(whole, least, points).round() if isinstance(points, int) else np.array(points) * whole
    if whole_units(limits.min(initial=whole)) < least:
        raise BudgetError(
            "No architecture meets this budget.",
            expected=f"{quantity}={_written(least, whole)} or more",
            got=f"{quantity}={limits.min() / whole:g}",
        )
    found = []
    for limit in limits.tolist():
        one = least_loss(table, limit, from_whole=False)
        keep = {name: fronts[name].front.supports[count].tolist() for name, count in one.counts.items()}
        budget, fraction = f"{quantity}={_written(limit, whole)}", one.cost / whole
        found.append(NetworkPoint(budget, fraction, costs.costs_of_keep(keep), one.loss, one.counts))
    return tuple(found)


def _written(limit: float, whole: int) -> str:
    """The fraction of the whole in as few digits as give the same limit again."""
    texts = (f"{limit / whole:.{digits}g}" for digits in range(3, 18))
    same = (text for text in texts if whole_units(float(text) * whole) == whole_units(limit))
    return next(same, repr(limit / whole))


def trade_off(
    run: Run | str | Path,
    *,
    budgets: Sequence[str] = (),
    quantity: str = "params",
    points: int = POINTS,
    constraints: Constraints | None = None,
    settings: SolveSettings | None = None,
    on_event: OnEvent = ignore,
) -> tuple[tuple[NetworkPoint, ...], str]:
    """What several budgets would give on a run, and the kind of the predicted loss; decides nothing.

    Fronts that are missing are found and committed; the run's solution stays as it is.

    Args:
        run: with complete statistics.
        budgets: of any kind; () for the whole range of `quantity`.
        quantity, points: see `network_front`.
        constraints, settings: as for `solve`.

    Raises:
        StageMissingError: the statistics are not complete.
        UsageError, BudgetError: as for `solve`.
    """
    settings, constraints = settings or SolveSettings(), constraints or Constraints()
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    whole, sizes = whole_here(captured, constraints), {group.name: group.size for group in captured.graph.groups}
    for budget in budgets or (f"{quantity}=1",):
        check_request(budget, None, sizes, whole, constraints)
    with run.lock():
        plain = find_fronts(run, captured, settings, on_event, constraints)
        fronts = RunFronts(plain, find_constrained_fronts(run, captured, settings, constraints, on_event))
    losses, kind = losses_of(run, fronts, on_event)
    if not budgets:
        return network_front(fronts.chosen, captured.costs, losses, quantity, points, constraints), kind
    plans = [decision_of(run, captured, fronts, constraints, budget).plan() for budget in budgets]
    return tuple(_point(plan) for plan in plans), kind


def _point(plan: PrunePlan) -> NetworkPoint:
    kind = (plan.budget or "").partition("=")[0]
    name = {"macs": "macs", "bytes": "bytes"}.get(kind, "parameters")
    fraction = getattr(plan.costs, name) / max(getattr(plan.original_costs, name), 1)
    return NetworkPoint(plan.budget or "", fraction, plan.costs, sum(plan.predicted_losses.values()), plan.counts)
