"""Plans from stored fronts: as solve decides, quick ones within the budget, never from what is there no more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streamsparse.errors import BudgetError, StageMissingError, UsageError
from streamsparse.latencies import measure_latencies
from streamsparse.service.planning import Planner, constraints_of
from streamsparse.service.schemas.budgets import Choice, ConstraintOptions
from streamsparse.solve import Constraints, solve, trade_off
from streamsparse.store import Run
from tests.small import SmallNet, build


@pytest.fixture
def run(solved_run: Path, tmp_path: Path) -> Run:
    shutil.copytree(solved_run, tmp_path / "run")
    return Run.at(tmp_path / "run")


@pytest.mark.parametrize("budget", ["params=0.4", "macs=0.6", "bytes=0.5", "max-error=0.3"])
def test_a_full_plan_is_what_solve_decides_and_a_quick_one_meets_the_budget(run: Run, budget: str) -> None:
    planner = Planner()
    full = planner.plan(run, Choice(budget=budget), full=True).plan
    quick = planner.plan(run, Choice(budget=budget)).plan
    assert full == solve(run, budget=budget).plan
    assert sum(quick.predicted_losses.values()) >= sum(full.predicted_losses.values()) - 1e-12
    assert quick.budget == budget
    kind, _, limit = budget.partition("=")
    quantity = {"params": "parameters", "macs": "macs", "bytes": "bytes"}.get(kind)
    if quantity is not None:
        assert getattr(quick.costs, quantity) <= float(limit) * getattr(quick.original_costs, quantity)


def test_constraints_are_honoured(run: Run) -> None:
    planner = Planner()
    options = {"round_to": 2, "min_channels": 0.3, "leave": ["conv2"]}
    planned = planner.plan(run, Choice(budget="params=0.9", **options))  # type: ignore[arg-type]
    assert planned.whole
    for name, kept in planned.plan.keep.items():
        size = planned.plan.sizes[name]
        assert len(kept) % 2 == 0 or len(kept) == size
        assert len(kept) >= 0.3 * size
    by_hand = planner.plan(run, Choice(budget=None, channels={"conv1": 3})).plan
    assert by_hand.counts["conv1"] == 3
    with pytest.raises(BudgetError, match="No architecture"):
        planner.plan(run, Choice(budget="params=0.0001"))
    with pytest.raises(UsageError, match="no channel group"):
        planner.plan(run, Choice(budget=None, channels={"none": 3}))


def test_positions_to_keep_need_fronts_of_their_own(run: Run) -> None:
    planner = Planner()
    choice = Choice(budget="params=0.5", keep={"conv1": [0]}, drop={"fc1": [1]})
    with pytest.raises(StageMissingError, match="fronts"):
        planner.plan(run, choice)
    trade_off(run, points=2, constraints=Constraints(keep={"conv1": (0,)}, drop={"fc1": (1,)}))
    plan = planner.plan(run, choice).plan
    assert 0 in plan.keep["conv1"]
    assert 1 not in plan.keep["fc1"]


def test_what_is_kept_in_memory_goes_when_the_run_changes(run: Run) -> None:
    planner = Planner()
    planner.plan(run, Choice(budget="params=0.4"))
    assert run.directory is not None
    shutil.rmtree(run.directory / "solution" / "fronts" / "conv1")
    with pytest.raises(StageMissingError, match="fronts"):
        planner.plan(run, Choice(budget="params=0.4"))


def test_the_front_falls_and_is_remembered(run: Run) -> None:
    planner = Planner()
    points, _ = planner.front(run, ConstraintOptions(), "params", 6)
    losses = [point.predicted_loss for point in points]
    assert losses == sorted(losses)
    assert planner.front(run, ConstraintOptions(), "params", 6)[0] is points


def test_a_front_by_errors_begins_where_positions_to_drop_leave_it(run: Run) -> None:
    options = ConstraintOptions(drop={"conv1": [0, 3], "fc1": [2, 5, 6]})
    solve(run, budget="params=0.5", constraints=constraints_of(options))
    planner = Planner()
    points, _ = planner.front(run, options, "max-error", 4)
    limits = [float(point.budget.partition("=")[2]) for point in points]
    for point, limit in zip(points, limits, strict=True):
        plan = planner.plan(run, Choice(budget=point.budget, drop=options.drop)).plan
        assert plan.counts == point.counts
        assert max(plan.predicted_errors.values()) <= limit
    with pytest.raises(BudgetError, match="held-out errors"):
        planner.plan(run, Choice(budget=f"max-error={limits[0] / 2}", drop=options.drop))


def test_a_front_by_errors_and_seconds_on_a_device(run: Run) -> None:
    planner = Planner()
    points, _ = planner.front(run, ConstraintOptions(), "max-error", 5)
    parameters = [point.costs.parameters for point in points]
    assert parameters == sorted(parameters, reverse=True)
    assert parameters[0] > parameters[-1]
    again = planner.plan(run, Choice(budget=points[2].budget)).plan
    assert again.counts == points[2].counts
    with pytest.raises(StageMissingError, match="latencies"):
        planner.plan(run, Choice(budget="params=0.5"), device="cpu")
    measure_latencies(run, model=build(SmallNet), device="cpu")
    planned = planner.plan(run, Choice(budget="params=0.5"), device="cpu")
    assert planned.plan.predicted_seconds is not None
    assert planned.original_seconds is not None
    assert 0 < planned.plan.predicted_seconds <= planned.original_seconds
