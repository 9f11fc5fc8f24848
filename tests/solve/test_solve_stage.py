"""The solve stage on runs: fronts found once, any budget after, and nothing changed by a refusal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsparse.errors import BudgetError, CorruptDataError, StageMissingError, UsageError
from streamsparse.events import Event, Reused, Started
from streamsparse.intake.captured import read_captured
from streamsparse.solve import SolveSettings, solve
from streamsparse.solve.problems import fold_problems, group_problem
from streamsparse.store import Run
from streamsparse.store.solution import read_solution, read_weights
from streamsparse.store.statistics import Statistics
from tests.small import ConcatNet, SmallNet, files_below, flip_bit, summed_run

QUICK = SolveSettings("elimination")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("solve") / "run"
    solve(summed_run(path, SmallNet), budget="params=0.5", settings=QUICK)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A run with statistics, fronts and a solution, to be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return Run.at(tmp_path / "run")


def started(events: list[Event]) -> list[str]:
    return [event.stage for event in events if isinstance(event, Started)]


@pytest.mark.parametrize("budget", ["params=0.3", "macs=0.4", "bytes=2000", "sparsity=0.6", "max-error=0.3"])
def test_another_budget_finds_no_front_again(run: Run, budget: str) -> None:
    events: list[Event] = []
    plan = solve(run, budget=budget, settings=QUICK, on_event=events.append).plan
    assert started(events) == ["refit"]
    assert Reused("solve", "the fronts of 3 of 3 groups") in events
    kind, _, value = budget.partition("=")
    whole, costs = plan.original_costs, plan.costs
    assert {
        "params": costs.parameters <= 0.3 * whole.parameters,
        "macs": costs.macs <= 0.4 * whole.macs,
        "bytes": costs.bytes <= 2000,
        "sparsity": plan.sparsity >= 0.6,
        "max-error": all(
            plan.predicted_errors[group] <= 0.3 or count == plan.sizes[group]  # a whole group changes nothing
            for group, count in plan.counts.items()
        ),
    }[kind], (costs, value)
    assert read_solution(run).plan == plan
    assert all(len(plan.keep[group]) == count for group, count in plan.counts.items())


def test_other_settings_and_other_statistics_find_fronts_again(run: Run) -> None:
    events: list[Event] = []
    solve(run, budget="params=0.5", settings=SolveSettings("elimination", ridge=1e-6), on_event=events.append)
    assert "solve" in started(events)


def test_counts_by_hand(run: Run) -> None:
    solution = solve(run, channels={"conv1": 2, "fc1": 5}, settings=QUICK)
    assert solution.plan.counts == {"conv1": 2, "conv2": 8, "fc1": 5}
    assert [layer.layer for layer in solution.layers] == ["conv2", "fc2"]
    weights = read_weights(run, solution)
    removed = sorted(set(range(6)) - set(solution.plan.keep["conv1"]))
    assert not weights["conv2"][0][:, removed].any()
    assert weights["conv2"][0][:, list(solution.plan.keep["conv1"])].all()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({}, UsageError),
        ({"channels": {"conv9": 1}}, UsageError),
        ({"channels": {"conv1": 0}}, UsageError),
        ({"channels": {"conv1": 7}}, UsageError),
        ({"budget": "size=1"}, BudgetError),
        ({"budget": "params=0.0001"}, BudgetError),
        ({"budget": "params=0.02", "channels": {"conv2": 8}}, BudgetError),
    ],
)
def test_a_refused_request_changes_nothing(run: Run, request_: dict[str, Any], error: type[Exception]) -> None:
    before = files_below(Path(run.url))
    with pytest.raises(error):
        solve(run, settings=QUICK, **request_)
    assert files_below(Path(run.url)) == before


def test_statistics_that_are_not_complete_are_refused(run: Run) -> None:
    """Without this the group would silently have been left out."""
    run.documents.delete("statistics/original/fc1")
    with pytest.raises(StageMissingError) as raised:
        solve(run, budget="params=0.5", settings=QUICK)
    assert "fc1" in str(raised.value.got)


@pytest.mark.parametrize("record", ["solution/fronts/conv1/errors", "statistics/original/conv2/gram"])
def test_damaged_records_are_named(run: Run, record: str) -> None:
    key, _, name = record.rpartition("/")
    flip_bit(next(file for file in (Path(run.url) / key).glob(f"*/{name}/c/**/*") if file.is_file()))
    with pytest.raises(CorruptDataError) as raised:
        solve(run, channels={"conv1": 3}, settings=QUICK)
    assert raised.value.where == record


def test_predicted_errors_fall_with_the_count(run: Run) -> None:
    errors = [
        solve(run, channels={"fc1": count}, settings=QUICK).plan.predicted_errors["fc1"] for count in (1, 6, 12)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01  # all channels: the layer itself, but for what only a held-out image lights up
    assert 0 < errors[0] < 1.5


def test_a_layer_that_reads_two_groups(tmp_path: Path) -> None:
    """Each group's problem explains what the other, which stays, leaves over."""
    run = summed_run(tmp_path, ConcatNet)
    captured, statistics = read_captured(run), Statistics(run)
    for name, size in (("left", 3), ("right", 4)):
        group = captured.graph.group(name)
        (regression,) = group_problem(group, captured.graph.layers, statistics)
        assert regression.gram.shape == (9 * size, 9 * size)
        assert len(list(fold_problems(group, captured.graph.layers, statistics))) == 4
        # all channels explain everything that is left, and no channel leaves exactly that
        solved = np.linalg.lstsq(regression.gram, regression.cross, rcond=None)[0]
        assert float((solved * regression.cross).sum()) == pytest.approx(regression.power, rel=1e-6)
    solution = solve(run, channels={"left": 2, "right": 2}, settings=QUICK)
    weight = read_weights(run, solution)["mix"][0]
    kept = [*solution.plan.keep["left"], *(3 + position for position in solution.plan.keep["right"])]
    assert sorted(np.flatnonzero(np.abs(weight).sum((0, 2, 3)))) == sorted(kept)


@pytest.mark.parametrize("method", ["entropic", "best"])
def test_every_method_fills_its_fronts(tmp_path: Path, finished: Path, method: Any) -> None:
    shutil.copytree(finished, tmp_path / "run")
    solution = solve(tmp_path / "run", channels={"conv1": 3, "conv2": 3, "fc1": 4}, settings=SolveSettings(method))
    assert set(solution.plan.methods.values()) <= {"entropic", "elimination", "exchange", "trivial"}
    assert solution.plan.counts == {"conv1": 3, "conv2": 3, "fc1": 4}


def test_an_unknown_method() -> None:
    with pytest.raises(UsageError):
        SolveSettings("magic")  # type: ignore[arg-type]
