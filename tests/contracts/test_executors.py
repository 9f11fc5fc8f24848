"""One contract for every executor: serial, threads, and Dask at a scheduler's address.

"processes" is the last of these with a cluster of its own; it is opened once, to spare the suite its start.

Tolerance: every executor merges the same tasks in the same tree, so the sums agree to a relative 1e-12 (they are
equal bit for bit where BLAS uses as many threads).
"""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster

from streamsparse.accumulate import AccumulateSettings, accumulate, accumulate_stream, plan_accumulation
from streamsparse.accumulate import cluster as cluster_module
from streamsparse.accumulate import plan as planning
from streamsparse.accumulate.executors import SerialExecutor, open_executor
from streamsparse.accumulate.reduction import Executor, Reduction
from streamsparse.errors import ClusterError, CorruptDataError, HalfOverflowError, UsageError
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from tests.small import captured_run, flip_bit, largest_difference, statistics_arrays

TOLERANCE = 1e-12
KINDS = ("serial", "threads", "scheduler")
SETTINGS = AccumulateSettings(folds=4)


@pytest.fixture(scope="module", params=KINDS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "scheduler":
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
            open_executor("serial", scheduler=cluster.scheduler_address) as opened,
        ):
            yield opened
    else:
        with open_executor(request.param, workers=2) as opened:
            yield opened


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task for every batch."""
    monkeypatch.setattr(planning, "_TASK_BYTES", 1)


def plan_of(run: Run) -> planning.AccumulatePlan:
    reader = run.reader()
    return plan_accumulation(run.url, reader, reader.require_complete(), SETTINGS)


def summed(run: Run, executor: Executor) -> dict[str, np.ndarray]:
    accumulate_stream(run, plan_of(run), executor=executor)
    return statistics_arrays(run)


@pytest.mark.usefixtures("many_tasks")
def test_the_same_statistics(executor: Executor, tmp_path: Path) -> None:
    run = captured_run(tmp_path, images=50, batch=7)
    assert all(len(layer.tasks) == 8 for layer in plan_of(run).layers)
    found = summed(run, executor)
    run.documents.delete("statistics")
    assert largest_difference(found, summed(run, SerialExecutor())) <= TOLERANCE


def numbered(item: int) -> list[int]:
    return [item]


def joined(first: list[int], second: list[int]) -> list[int]:
    return first + second


@pytest.mark.parametrize("count", [1, 2, 7])
def test_merges_neighbours_in_the_order_of_the_items(executor: Executor, count: int) -> None:
    reductions = [Reduction(str(key), tuple(range(key, key + count)), numbered, joined) for key in range(3)]
    seen: list[int] = []
    threads: set[int] = set()

    def on_item(item: int) -> None:
        seen.append(item)
        threads.add(threading.get_ident())

    found = dict(executor.run(reductions, on_item))
    assert found == {str(key): list(range(key, key + count)) for key in range(3)}
    assert sorted(seen) == sorted(item for reduction in reductions for item in reduction.items)
    assert threads == {threading.get_ident()}


def failing(item: int) -> list[int]:
    if item == 3:
        raise HalfOverflowError("Too large.", expected="65,504", got=1e9, where="conv1", remedy="--dtype float32")
    return [item]


def test_errors_come_through_unchanged(executor: Executor) -> None:
    with pytest.raises(HalfOverflowError) as raised:
        list(executor.run([Reduction("all", tuple(range(6)), failing, joined)], lambda _: None))
    assert raised.value.to_json() == {
        "error": "HalfOverflowError",
        "summary": "Too large.",
        "expected": "65,504",
        "got": "1000000000.0",
        "where": "conv1",
        "remedy": "--dtype float32",
    }


@pytest.mark.usefixtures("many_tasks")
def test_finished_layers_stay_committed_when_a_chunk_is_damaged(executor: Executor, tmp_path: Path) -> None:
    run = captured_run(tmp_path)
    flip_bit(next(tmp_path.rglob("fc2@0/input/c/2/0")))
    with pytest.raises(CorruptDataError) as raised:
        summed(run, executor)
    assert "fc2@0/input, batch 2" in str(raised.value.where)
    assert "fc2" not in Statistics(run)


def dying(marker: Path, item: int) -> list[int]:
    """Kills the process that works on item 2, once."""
    if item == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [item]


def test_a_killed_worker_changes_nothing(executor: Executor, tmp_path: Path) -> None:
    if executor.name != "dask":
        pytest.skip("works in this process")
    marker = tmp_path / "killed"
    reduction = Reduction("all", tuple(range(8)), partial(dying, marker), joined)
    assert dict(executor.run([reduction], lambda _: None)) == {"all": list(range(8))}
    assert marker.exists()


@pytest.mark.parametrize("kind", ["serial", "threads", "auto", "processes"])
def test_by_name(tmp_path: Path, kind: str) -> None:
    run = captured_run(tmp_path)
    report = accumulate(run, settings=SETTINGS, executor=kind, workers=1)
    assert (report.layers, report.reused_layers, report.images) == (3, 0, 40)
    assert report.patches == 40 * (9 + 1 + 1)


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError) as raised, open_executor("magic"):
        pass
    assert raised.value.got == "magic"


def test_threads_hold_no_more_than_they_work_on() -> None:
    """Items are started only when a thread is free, so finished results do not pile up."""
    started: list[int] = []
    merged = 0

    def slow_first(item: int) -> list[int]:
        started.append(item)
        if item == 0:
            time.sleep(0.3)
            assert len(started) <= 3
        return [item]

    def merge(first: list[int], second: list[int]) -> list[int]:
        nonlocal merged
        merged += 1
        return first + second

    with open_executor("threads", workers=3) as opened:
        found = dict(opened.run([Reduction("all", tuple(range(20)), slow_first, merge)], lambda _: None))
    assert found == {"all": list(range(20))}
    assert merged == 19


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_TIMEOUT_SECONDS", 1)
    with pytest.raises(ClusterError) as raised, open_executor("serial", scheduler="tcp://127.0.0.1:9"):
        pass
    assert raised.value.where == "tcp://127.0.0.1:9"
    assert raised.value.exit_status == 1


class NotDask:
    """Says that it is Dask; the check must come before anything is submitted."""

    name = "dask"

    def run(self, *_: object) -> Iterator[tuple[str, object]]:
        raise AssertionError("nothing may be submitted")


def test_a_run_in_memory_is_not_sent_to_other_processes() -> None:
    plan = planning.AccumulatePlan("original", 1, SETTINGS, ())
    with pytest.raises(UsageError, match="in memory"):
        accumulate_stream(Run.at("memory://"), plan, executor=NotDask())  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_scheduler_that_dies_is_a_cluster_error(tmp_path: Path) -> None:
    address = tmp_path / "scheduler.json"
    common = [sys.executable, "-m"]
    started = [[*common, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]]
    started += [[*common, "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard", "--no-nanny"]]
    processes = [
        subprocess.Popen([*command, "--scheduler-file", str(address)], stderr=subprocess.DEVNULL)
        for command in started
    ]
    try:
        while not address.exists():
            time.sleep(0.1)
        where = json.loads(address.read_text())["address"]
        reduction = Reduction("all", (2.0,) * 8, time.sleep, operator.is_)  # the workers do not know this module
        with open_executor("serial", scheduler=where) as opened, pytest.raises(ClusterError) as raised:
            list(opened.run([reduction], lambda _: processes[0].kill()))
        assert raised.value.exit_status == 1
    finally:
        for process in processes:
            process.kill()
            process.wait(20)
