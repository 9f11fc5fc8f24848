"""Constraints on plans: counts, positions and layers, for every kind of budget and by hand."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.errors import BudgetError, UsageError
from streamsparse.events import Event, Notice, Reused, Started
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.regression import support_error
from streamsparse.solve import Constraints, SolveSettings, check_request, find_fronts, solve
from streamsparse.solve.constrained import constrained_front, solve_constrained_group
from streamsparse.solve.constraints import left_groups
from streamsparse.solve.measured import transferred_losses
from streamsparse.solve.problems import group_problem
from streamsparse.store import Run
from streamsparse.store.solution import read_solution
from streamsparse.store.statistics import Statistics
from tests.small import SmallNet, files_below, summed_run
from tests.strategies import problems as regression_problems

SIZES = {"conv1": 6, "conv2": 8, "fc1": 12}
QUICK = SolveSettings("elimination")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("constraints") / "run"
    run = summed_run(path, SmallNet)
    find_fronts(run, read_captured(run), QUICK)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A run with fronts, to be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return Run.at(tmp_path / "run")


def started(events: list[Event]) -> list[str]:
    return [event.stage for event in events if isinstance(event, Started)]


@given(st.integers(1, 40), st.integers(1, 16), st.one_of(st.integers(1, 20), st.floats(0.01, 0.99)), st.data())
def test_allowed_counts(size: int, round_to: int, least: float, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.integers(0, size - 1), max_size=3))
    dropped = data.draw(st.sets(st.integers(0, size - 1), max_size=3)) - kept
    constraints = Constraints(round_to, least, {"a": tuple(kept)}, {"a": tuple(dropped)})
    fraction = least < 1
    expected = [
        count
        for count in range(1, size + 1)
        if (count % round_to == 0 or count == size)
        and (count >= (least * size if fraction else least) or count == size)
        and len(kept) <= count <= size - len(dropped)
    ]
    if expected:
        assert constraints.allowed("a", size).tolist() == expected
    else:
        with pytest.raises(UsageError, match="respects all constraints"):
            constraints.allowed("a", size)


@pytest.mark.parametrize("budget", ["params=0.6", "macs=0.7", "bytes=0.6", "sparsity=0.4", "max-error=0.3", None])
def test_every_budget_and_counts_by_hand_honour_all_of_them(run: Run, budget: str | None) -> None:
    constraints = Constraints(2, 0.5, {"conv2": (1, 5)}, {"conv2": (0,), "fc1": (3, 4)})
    channels = None if budget else {"conv2": 6}
    plan = solve(run, budget=budget, channels=channels, constraints=constraints, settings=QUICK).plan
    assert {1, 5} <= set(plan.keep["conv2"])
    assert not {0} & set(plan.keep["conv2"])
    assert not {3, 4} & set(plan.keep["fc1"])
    for group, count in plan.counts.items():
        assert count >= SIZES[group] / 2
        assert count % 2 == 0 or count == SIZES[group]
        assert len(plan.keep[group]) == count


def test_layers_that_are_left(run: Run) -> None:
    events: list[Event] = []
    constraints = Constraints(leave=("fc1",))
    plan = solve(run, budget="params=0.9", constraints=constraints, settings=QUICK, on_event=events.append).plan
    assert set(plan.keep) == {"conv1"}, "conv2's outputs are fc1's inputs, fc1's its outputs"
    said = [event.message for event in events if isinstance(event, Notice) and "stays whole" in event.message]
    assert len(said) == 2
    assert all("'fc1'" in message and "--leave fc1" in message for message in said)
    with pytest.raises(BudgetError):
        solve(run, budget="params=0.2", constraints=constraints, settings=QUICK)


def test_positions_to_keep_of_a_group_that_is_left_whole_are_kept(run: Run) -> None:
    both = Constraints(keep={"conv1": (0, 2)}, leave=("conv1",))
    plan = solve(run, budget="params=0.6", constraints=both, settings=QUICK).plan
    assert plan == solve(run, budget="params=0.6", constraints=Constraints(leave=("conv1",)), settings=QUICK).plan


def test_counts_of_groups_that_are_left_whole_are_no_request_that_is_missing(run: Run) -> None:
    plan = solve(run, channels={"conv1": 6}, constraints=Constraints(leave=("conv1",)), settings=QUICK).plan
    assert plan.costs == plan.original_costs


def test_left_layers_by_pattern_container_and_norm(finished: Path) -> None:
    graph = read_captured(Run.at(finished)).graph
    assert set(left_groups(graph, ("conv*",))) == {"conv1", "conv2"}
    assert set(left_groups(graph, ("norm2",))) == {"conv2"}
    assert set(left_groups(graph, ("fc2", "conv1"))) == {"fc1", "conv1"}
    with pytest.raises(UsageError, match="No layer") as raised:
        left_groups(graph, ("layer4.*",))
    assert "conv1" in str(raised.value.expected)


@pytest.mark.parametrize(
    ("channels", "constraints", "word"),
    [
        ({"conv1": 5}, {"round_to": 4}, "nearest: 4, 6"),
        ({"conv1": 2}, {"min_channels": 3}, "3 to 6"),
        ({"conv1": 1}, {"keep": {"conv1": (0, 1)}}, "2 to 6"),
        ({"conv1": 6}, {"drop": {"conv1": (0,)}}, "1 to 5"),
        ({"conv1": 5}, {"leave": ("conv1",)}, "all 6 channels"),
        (None, {"drop": {"conv1": (0,)}, "leave": ("conv1",)}, "no positions to drop"),
        (None, {"drop": {"conv9": (0,)}}, "conv1"),
        (None, {"keep": {"conv1": (6,)}, "drop": {"fc1": (0,)}}, "0 to 5"),
        (None, {"drop": {"conv1": (0,)}, "round_to": 8}, "multiple of 8"),
        (None, {"drop": {"conv1": tuple(range(6))}}, "1 to 0"),
    ],
)
def test_conflicts_are_refused_and_change_nothing(
    run: Run, channels: dict[str, int] | None, constraints: dict[str, Any], word: str
) -> None:
    before = files_below(Path(run.url))
    with pytest.raises(UsageError) as raised:
        solve(run, channels=channels, constraints=Constraints(**constraints), settings=QUICK)
    assert word in str(raised.value.expected)
    assert raised.value.where is not None
    assert files_below(Path(run.url)) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"round_to": 0},
        {"min_channels": 0},
        {"min_channels": 1.5},
        {"min_channels": float("inf")},
        {"keep": {"a": (1,)}, "drop": {"a": (1, 2)}},
    ],
)
def test_constraints_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Constraints(**wrong)


def test_a_fraction_of_the_channels_is_no_more_than_that() -> None:
    for percent in range(1, 100):
        for size in (1, 7, 50, 64, 100, 200):
            exact = max(1, -(-percent * size // 100))
            assert Constraints(min_channels=percent / 100).least_count(size) == exact


def test_without_lists_to_drop_something_must_be_asked_for() -> None:
    with pytest.raises(UsageError, match="how small"):
        check_request(None, None, SIZES, constraints=Constraints(keep={"conv1": (0,)}))
    check_request(None, None, SIZES, constraints=Constraints(drop={"conv1": (0,)}))


def test_lists_keep_their_fronts(run: Run) -> None:
    """Each list's front lies beside the plain one and the others; going back finds it again."""
    lists = Constraints(keep={"conv1": (2,)}), Constraints(keep={"conv1": (4,)}, drop={"conv2": (0, 1)})
    for constraints in lists:
        events: list[Event] = []
        solve(run, budget="params=0.5", constraints=constraints, settings=QUICK, on_event=events.append)
        assert started(events) == ["solve with lists", "refit"]
        assert Reused("solve", "the fronts of 3 of 3 groups") in events
    for constraints in (*lists, Constraints()):
        events = []
        plan = solve(run, budget="params=0.5", constraints=constraints, settings=QUICK, on_event=events.append).plan
        assert started(events) == ["refit"]
        assert set(constraints.keep.get("conv1", ())) <= set(plan.keep["conv1"])
    assert read_solution(run).plan == plan


@settings(deadline=None, max_examples=25)
@given(regression_problems(), st.data())
def test_fronts_around_lists_hold_the_best_of_what_is_left(problem: Any, data: st.DataObject) -> None:
    """Elimination on few positions: supports respect the lists, and errors are those of the whole layer."""
    positions = problem[0].positions
    order = data.draw(st.permutations(range(positions)))
    cut = data.draw(st.integers(0, positions - 1)), data.draw(st.integers(0, positions - 1))
    kept = np.sort(np.array(order[: cut[0]], dtype=np.int64))
    dropped = np.sort(np.array(order[cut[0] : min(positions - 1, cut[0] + cut[1])], dtype=np.int64))
    front = constrained_front(problem, SolveSettings("best"), kept, dropped)
    assert [len(support) for support in front.supports] == list(range(positions + 1))
    for count in range(max(1, len(kept)), positions - len(dropped) + 1):
        support = front.supports[count]
        assert set(kept) <= set(support.tolist())
        assert not set(dropped) & set(support.tolist())
        assert front.errors[count] == pytest.approx(support_error(problem, support, front.ridge), abs=1e-3)


def test_the_front_around_lists_is_near_brute_force(finished: Path) -> None:
    run = Run.at(finished)
    captured, statistics = read_captured(run), Statistics(run)
    group = captured.graph.group("conv2")
    problem = group_problem(group, captured.graph.layers, statistics)
    kept, dropped = np.array([1, 6]), np.array([3])
    own = {consumer.layer: statistics[consumer.layer] for consumer in group.consumers}
    found = solve_constrained_group(group, captured.graph.layers, own, SolveSettings("best"), kept, dropped)
    free = [0, 2, 4, 5, 7]
    for count in range(2, 8):
        errors = [
            support_error(problem, np.sort(np.array([1, 6, *chosen])), found.front.ridge)
            for chosen in combinations(free, count - 2)
        ]
        assert min(errors) - 1e-4 <= found.front.errors[count] <= 1.02 * min(errors) + 1e-4
    assert np.isfinite(found.held_out).all()


def test_losses_follow_the_errors_of_another_front() -> None:
    errors, losses = np.array([1.0, 0.5, 0.1, 0.01, 0.0]), np.array([4.0, 1.0, 0.1, 0.004, 0.0])
    np.testing.assert_allclose(transferred_losses(losses, errors, errors), losses, rtol=1e-9)
    worse = transferred_losses(losses, errors, np.array([1.0, 0.8, 0.2, 0.02, 0.0]))
    assert (worse >= losses - 1e-12).all()
    assert (np.diff(worse) <= 0).all()
    assert worse[-1] == 0
