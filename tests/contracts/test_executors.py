"""One contract for every executor: serial, threads, and Dask at a scheduler's address.

"processes" is the last of these with a cluster of its own; it is opened once, to spare the suite its start.

Tolerance: every executor adds the same lanes in the same order, so the sums agree to a relative 1e-12 (they are
equal bit for bit where BLAS uses as many threads).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

from streamsparse.accumulate import AccumulateSettings, accumulate, accumulate_stream, plan_accumulation
from streamsparse.accumulate import plan as planning
from streamsparse.accumulate.memory import Resources
from streamsparse.errors import ClusterError, CorruptDataError, HalfOverflowError, UsageError
from streamsparse.executors import Executor, Report, Step, open_executor
from streamsparse.executors import cluster as cluster_module
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from tests.small import captured_run, flip_bit, largest_difference, statistics_arrays

TOLERANCE = 1e-12
KINDS = ("serial", "threads", "scheduler")
SETTINGS = AccumulateSettings(folds=4, product_dtype="float64")


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


CUTS = {"conv2": [3, 3], "fc1": [36, 8], "fc2": [12, 2]}
"""Channels on the side of a block, and lanes: conv2 and fc1 in blocks, all in several lanes."""


def plan_of(run: Run) -> planning.AccumulatePlan:
    reader = run.reader()
    return plan_accumulation(run.url, reader, reader.require_complete(), SETTINGS, earlier=CUTS)


def summed(run: Run, executor: Executor) -> dict[str, np.ndarray]:
    accumulate_stream(run, plan_of(run), executor=executor)
    return statistics_arrays(run)


def test_the_same_statistics(executor: Executor, tmp_path: Path) -> None:
    """Several lanes and blocks on any executor, one of each in this thread."""
    run = captured_run(tmp_path, images=50, batch=7)
    assert [(len(layer.cut.blocks), len(layer.tasks)) for layer in plan_of(run).layers] == [(3, 9), (3, 24), (1, 2)]
    found = summed(run, executor)
    assert not run.documents.names(f"partials/original/{plan_of(run).sums.rpartition('/')[2]}")
    run.documents.delete("statistics")
    accumulate(run, settings=SETTINGS, executor="serial")
    assert largest_difference(found, statistics_arrays(run)) <= TOLERANCE


def noting(folder: Path, item: tuple[int, tuple[int, ...]], report: Report) -> None:
    """Leaves a file, once those before it are there."""
    number, before = item
    assert all((folder / str(other)).exists() for other in before)
    (folder / str(number)).touch()
    report(number)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_step_once_in_an_order_that_is_allowed(executor: Executor, tmp_path: Path, count: int) -> None:
    before = {number: tuple(range(0, number, 3)) for number in range(count)}
    steps = [
        Step(str(number), partial(noting, tmp_path), (number, others), tuple(map(str, others)))
        for number, others in before.items()
    ]
    amounts: list[int] = []
    threads: set[int] = set()

    def report(amount: int) -> None:
        amounts.append(amount)
        threads.add(threading.get_ident())

    done = [step.key for step in executor.run(steps, report)]
    assert sorted(done, key=int) == [str(number) for number in range(count)]
    for number, others in before.items():
        assert all(done.index(str(other)) < done.index(str(number)) for other in others)
    assert threads == {threading.get_ident()}
    assert sorted(amounts) == list(range(count))


def failing(item: int, report: Report) -> None:
    if item == 3:
        raise HalfOverflowError("Too large.", expected="65,504", got=1e9, where="conv1", remedy="--dtype float32")
    report(1)


def test_errors_come_through_unchanged(executor: Executor) -> None:
    with pytest.raises(HalfOverflowError) as raised:
        list(executor.run([Step(str(item), failing, item) for item in range(6)], lambda _: None))
    assert raised.value.to_json() == {
        "error": "HalfOverflowError",
        "summary": "Too large.",
        "expected": "65,504",
        "got": "1000000000.0",
        "where": "conv1",
        "remedy": "--dtype float32",
    }


def test_finished_layers_stay_committed_when_a_chunk_is_damaged(executor: Executor, tmp_path: Path) -> None:
    run = captured_run(tmp_path)
    flip_bit(next(tmp_path.rglob("fc2@0/input/c/2/0")))
    with pytest.raises(CorruptDataError) as raised:
        summed(run, executor)
    assert "fc2@0/input, batch 2" in str(raised.value.where)
    assert "fc2" not in Statistics(run)


def dying(folder: Path, item: int, report: Report) -> None:
    """Kills the process that works on item 2, once."""
    if item == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(item)).touch()
    report(item)


def test_a_killed_worker_changes_nothing(executor: Executor, tmp_path: Path) -> None:
    if executor.name != "dask":
        pytest.skip("works in this process")
    steps = [Step(str(item), partial(dying, tmp_path), item) for item in range(8)]
    assert len(list(executor.run(steps, lambda _: None))) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [*map(str, range(8)), "killed"]


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


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_TIMEOUT_SECONDS", 1)
    with pytest.raises(ClusterError) as raised, open_executor("serial", scheduler="tcp://127.0.0.1:9"):
        pass
    assert raised.value.where == "tcp://127.0.0.1:9"
    assert raised.value.exit_status == 1


def test_a_cluster_may_find_its_first_worker_a_little_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart of everything: workers load their libraries before they report to the scheduler."""
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        with monkeypatch.context() as patch, Client(cluster) as client:
            patch.setattr(cluster_module, "_TIMEOUT_SECONDS", 0.3)
            with pytest.raises(ClusterError, match="no workers"):
                cluster_module.DaskExecutor(client)
        starting = threading.Timer(0.5, cluster.scale, [1])
        starting.start()
        with Client(cluster) as client:
            assert cluster_module.DaskExecutor(client).workers > 0
        starting.join()


class NotDask:
    """Says that it is Dask; the check must come before anything is submitted."""

    name = "dask"

    def run(self, *_: object) -> Iterator[Step]:
        raise AssertionError("nothing may be submitted")


def test_a_run_in_memory_is_not_sent_to_other_processes() -> None:
    plan = planning.AccumulatePlan("original", 1, SETTINGS, Resources(), "partials/original/sums-0", ())
    with pytest.raises(UsageError, match="in memory"):
        accumulate_stream(Run.at("memory://"), plan, executor=NotDask())  # type: ignore[arg-type]


def slow(_: int, report: Report) -> None:
    time.sleep(1.0)
    report(1)


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
        while True:
            with suppress(ClusterError), open_executor("serial", scheduler=where) as opened:
                break
        steps = [Step(str(item), slow, item) for item in range(8)]
        with open_executor("serial", scheduler=where) as opened, pytest.raises(ClusterError) as raised:
            list(opened.run(steps, lambda _: processes[0].kill()))
        assert raised.value.exit_status == 1
    finally:
        for process in processes:
            process.kill()
            process.wait(20)
