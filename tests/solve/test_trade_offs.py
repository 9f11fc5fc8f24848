"""The whole trade-off, plans with measured losses, and plans that are only looked at."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from streamsparse.errors import BudgetError, UsageError
from streamsparse.events import Event, Notice
from streamsparse.intake.captured import read_captured
from streamsparse.sensitivity import measure_sensitivities
from streamsparse.solve import (
    Budget,
    Constraints,
    SolveSettings,
    allocate,
    find_fronts,
    make_plan,
    parse_budget,
    solve,
)
from streamsparse.solve.allocation import whole_units
from streamsparse.solve.finding import committed_fronts, find_constrained_fronts
from streamsparse.solve.losses import predicted_losses
from streamsparse.solve.measured import known_losses, read_sensitivities
from streamsparse.solve.stage import decision_of
from streamsparse.solve.trade_offs import network_front, trade_off
from streamsparse.store import Run
from streamsparse.types import PrunePlan
from tests.small import SmallNet, build, files_below, random_images, summed_run

QUICK = SolveSettings("elimination")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with fronts and sensitivities."""
    path = tmp_path_factory.mktemp("trade-off") / "run"
    run = summed_run(path, SmallNet)
    find_fronts(run, read_captured(run), QUICK)
    measure_sensitivities(run, random_images(40), model=build(SmallNet), images=20)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    shutil.copytree(finished, tmp_path / "run")
    return Run.at(tmp_path / "run")


def test_losses_fall_and_costs_rise_along_the_front(finished: Path) -> None:
    run = Run.at(finished)
    captured = read_captured(run)
    fronts = find_fronts(run, captured, QUICK)
    losses = predicted_losses(fronts, read_sensitivities(run, fronts))
    for quantity, of in (("params", "parameters"), ("macs", "macs"), ("bytes", "bytes")):
        begun = process_time()
        points = network_front(fronts, captured.costs, losses, quantity, 12)
        assert (process_time() - begun) / 12 < 1  # 10 ms on a quiet machine
        spent = [getattr(point.costs, of) for point in points]
        whole = getattr(captured.costs.costs({}), of)
        assert len(points) == 12
        assert (np.diff(spent) <= 0).all()
        assert (np.diff([point.predicted_loss for point in points]) >= -1e-12).all()
        assert points[-1].counts == dict.fromkeys(fronts, 1)
        for point in points:
            limit = float(point.budget.partition("=")[2]) * whole
            assert getattr(point.costs, of) <= whole_units(limit)
            assert point.costs == captured.costs.costs(point.counts)
            assert point.fraction == pytest.approx(getattr(point.costs, of) / whole)
        assert allocate(parse_budget(points[-1].budget), losses, captured.costs) == points[-1].counts


def test_every_size_can_be_written_as_a_fraction(finished: Path) -> None:
    costs = read_captured(Run.at(finished)).costs
    whole = costs.parameters({})
    assert [whole_units(Budget("params", size / whole).absolute(costs)) for size in range(1, whole)] == [
        *range(1, whole)
    ]


def test_points_of_the_front_are_the_plans_of_their_budgets(finished: Path) -> None:
    run = Run.at(finished)
    captured = read_captured(run)
    fronts = find_fronts(run, captured, QUICK)
    losses = predicted_losses(fronts, read_sensitivities(run, fronts))
    constraints = Constraints(round_to=2)
    for point in network_front(fronts, captured.costs, losses, "params", [0.7, 0.5, 0.3], constraints):
        plan = make_plan(
            fronts,
            captured.costs,
            budget=point.budget,
            losses=losses,
            loss_kind="divergence",
            constraints=constraints,
        )
        assert sum(plan.predicted_losses.values()) == pytest.approx(point.predicted_loss)
        assert all(count % 2 == 0 for count in point.counts.values())
    with pytest.raises(BudgetError, match="No architecture"):
        network_front(fronts, captured.costs, losses, "params", [0.0001])
    with pytest.raises(BudgetError, match="quantity"):
        network_front(fronts, captured.costs, losses, "seconds")


def test_several_budgets_decide_nothing(run: Run) -> None:
    before = files_below(Path(run.url))
    budgets = ("params=0.5", "macs=0.5", "max-loss=0.1", "max-error=0.3", "sparsity=0.6")
    points, kind = trade_off(run, budgets=budgets, settings=QUICK)
    assert kind == "divergence"
    assert [point.budget for point in points] == list(budgets)
    assert points[0].fraction <= 0.5
    assert points[2].predicted_loss <= 0.1
    assert len(trade_off(run, points=5, settings=QUICK)[0]) == 5
    assert files_below(Path(run.url)) == before
    with pytest.raises(BudgetError):
        trade_off(run, budgets=("size=1",), settings=QUICK)


def test_solve_minimises_what_was_measured(run: Run) -> None:
    events: list[Event] = []
    plan = solve(run, budget="params=0.5", settings=QUICK, on_event=events.append).plan
    assert plan.loss_kind == "divergence"
    fronts = find_fronts(run, read_captured(run), QUICK)
    losses = predicted_losses(fronts, read_sensitivities(run, fronts))
    assert plan.predicted_losses == {name: losses[name][count] for name, count in plan.counts.items()}
    assert not [event for event in events if isinstance(event, Notice)]
    bounded = solve(run, budget="max-loss=0.05", settings=QUICK).plan
    assert sum(bounded.predicted_losses.values()) <= 0.05
    assert PrunePlan.from_json(plan.to_json()) == plan


def test_without_sensitivities_the_errors_stand_in_and_it_is_said(run: Run) -> None:
    (Path(run.url) / "solution/sensitivities.json").unlink()
    events: list[Event] = []
    plan = solve(run, budget="params=0.5", settings=QUICK, on_event=events.append).plan
    assert plan.loss_kind == "error"
    assert plan.predicted_losses == plan.predicted_errors
    said = [event.message for event in events if isinstance(event, Notice)]
    assert len(said) == 1
    assert "streamsparse sensitivity" in said[0]
    with pytest.raises(BudgetError, match="predicted loss") as raised:
        solve(run, budget="max-loss=0.05", settings=QUICK)
    assert "streamsparse sensitivity" in str(raised.value.remedy)
    solve(run, channels={"conv1": 3}, settings=QUICK, on_event=events.append)
    assert len([event for event in events if isinstance(event, Notice)]) == 1, "counts by hand need no losses"


def test_some_sensitivities_are_none(run: Run) -> None:
    """Their units differ from those of errors."""
    (Path(run.url) / "solution/sensitivities/conv2.json").unlink()
    fronts = find_fronts(run, read_captured(run), QUICK)
    events: list[Event] = []
    losses, kind = known_losses(run, fronts, events.append)
    assert kind == "error"
    np.testing.assert_array_equal(losses["conv1"], fronts["conv1"].held_out)
    assert any(isinstance(event, Notice) and "2 of 3" in event.message for event in events)


def test_lists_use_the_sensitivities_of_the_plain_front(run: Run) -> None:
    constraints = Constraints(keep={"conv2": (0, 1, 2)})
    plan = solve(run, budget="params=0.5", constraints=constraints, settings=QUICK).plan
    free = solve(run, budget="params=0.5", settings=QUICK).plan
    assert plan.loss_kind == free.loss_kind == "divergence"
    assert {0, 1, 2} <= set(plan.keep["conv2"])
    assert sum(plan.predicted_losses.values()) >= 0.99 * sum(free.predicted_losses.values())


def test_a_plan_that_is_looked_at_writes_nothing(run: Run) -> None:
    captured = read_captured(run)
    lists = Constraints(keep={"conv1": (2,)})
    assert committed_fronts(run, captured, QUICK, lists) is None, "the front around the list is not there yet"
    find_constrained_fronts(run, captured, QUICK, lists)
    before = files_below(Path(run.url))
    fronts = committed_fronts(run, captured, QUICK, lists)
    assert fronts is not None
    plan = decision_of(run, captured, fronts, lists, "params=0.5").plan()
    assert files_below(Path(run.url)) == before
    assert solve(run, budget="params=0.5", constraints=lists, settings=QUICK).plan == plan
    assert committed_fronts(run, captured, SolveSettings("entropic"), Constraints()) is None


def test_counts_by_hand_against_left_groups(run: Run) -> None:
    with pytest.raises(UsageError, match="stays whole"):
        solve(run, channels={"conv1": 3}, constraints=Constraints(leave=("conv1",)), settings=QUICK)
