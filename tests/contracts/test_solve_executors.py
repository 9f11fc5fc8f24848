"""Groups solved by every executor: the same fronts, resumed after a failure, refused where they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster

from streamsparse.errors import ClusterError, UsageError
from streamsparse.events import Event, Reused
from streamsparse.executors import Execution
from streamsparse.intake.captured import read_captured
from streamsparse.solve import GroupFront, SolveSettings, find_fronts, solve
from streamsparse.store import Run
from tests.small import summed_run

SETTINGS = SolveSettings("elimination")


def fronts_of(
    run: Run, execution: Execution | None = None, events: list[Event] | None = None
) -> dict[str, GroupFront]:
    hear = (lambda _: None) if events is None else events.append
    return find_fronts(run, read_captured(run), SETTINGS, hear, execution=execution)


def assert_equal(found: dict[str, GroupFront], expected: dict[str, GroupFront]) -> None:
    assert list(found) == list(expected)
    for name, front in expected.items():
        for field, array in front.arrays().items():
            assert np.allclose(found[name].arrays()[field], array, rtol=1e-9, atol=1e-12), (name, field)


def test_processes_find_the_fronts_of_one_process(tmp_path: Path) -> None:
    one, many = summed_run(tmp_path / "one"), summed_run(tmp_path / "many")
    expected = fronts_of(one)
    assert_equal(fronts_of(many, Execution("processes", workers=2)), expected)
    events: list[Event] = []
    assert_equal(
        fronts_of(many, Execution(scheduler="tcp://127.0.0.1:1"), events), expected
    )  # nothing is left to do
    assert any(isinstance(event, Reused) for event in events)


def test_a_worker_of_a_cluster_fetches_the_weights_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = summed_run(tmp_path / "one"), summed_run(tmp_path / "other")
    expected = fronts_of(one)
    assert len(expected) > 1
    fetched: list[str] = []
    weights = Run.weights
    monkeypatch.setattr(Run, "weights", lambda self: fetched.append(self.url) or weights(self))
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**settings) as cluster:
        assert_equal(fronts_of(other, Execution(scheduler=cluster.scheduler_address)), expected)
    assert fetched == [other.url]


@pytest.mark.slow
def test_a_plan_from_processes(tmp_path: Path) -> None:
    one, many = summed_run(tmp_path / "one"), summed_run(tmp_path / "many")
    expected = solve(one, budget="params=0.5", settings=SETTINGS).plan
    assert solve(many, budget="params=0.5", settings=SETTINGS, executor="processes", workers=2).plan == expected


def test_fronts_that_were_found_before_a_failure_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamsparse.solve import group_steps

    run, done = summed_run(tmp_path), 0
    solve_groups = group_steps.solve_groups

    def failing(*arguments: object) -> object:
        nonlocal done
        done += 1
        if done == 2:
            raise MemoryError
        return solve_groups(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(group_steps, "solve_groups", failing)
    with pytest.raises(MemoryError):
        fronts_of(run)
    events: list[Event] = []
    found = fronts_of(run, events=events)
    assert [event.what for event in events if isinstance(event, Reused)] == [
        f"the fronts of 1 of {len(found)} groups"
    ]


def test_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threads"):
        fronts_of(summed_run(tmp_path), Execution("threads"))


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamsparse.executors import cluster

    monkeypatch.setattr(cluster, "_TIMEOUT_SECONDS", 1)
    run = summed_run(tmp_path)
    with pytest.raises(ClusterError):
        fronts_of(run, Execution(scheduler="tcp://127.0.0.1:1"))
