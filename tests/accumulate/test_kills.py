"""kill -9 of a worker, of the scheduler, of the client, at random moments of `accumulate --scheduler`.

What died is started again, the same command is typed again where it ended, and the statistics are those of an
undisturbed run to the documented relative 1e-12. Sums are kept after every batch here, so that every kill falls
among writings of lanes. After a kill of the scheduler or the client, workers that were given up for lost go on for
a while beside the new ones.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsparse.accumulate import (
    AccumulatePlan,
    AccumulateSettings,
    accumulate_stream,
    plan_accumulation,
    task,
)
from streamsparse.accumulate.stage import begin_sums
from streamsparse.store import Run
from streamsparse.verification import verify_run
from tests.cluster_processes import ClusterProcesses, cluster_processes, kill
from tests.small import batch_by_batch, captured_run, largest_difference, statistics_arrays

FOLDS, IMAGES, BATCH_IMAGES = 4, 60, 4
CUTS = {"conv2": [3, 3], "fc1": [36, 4], "fc2": [12, 2]}
"""Channels on the side of a block, and lanes: conv2 and fc1 in blocks, all in several lanes."""
DOCUMENTED = 1e-12
LONGEST_SECONDS = 3.0


def plan_of(run: Run) -> AccumulatePlan:
    reader = run.reader()
    batches = reader.require_complete()
    return plan_accumulation(run.url, reader, batches, AccumulateSettings(FOLDS), earlier=CUTS)


def begin(captured: Path, path: Path) -> Run:
    """A copy of the captured run, cut as an earlier accumulation would have left it."""
    run = Run.at(shutil.copytree(captured, path))
    plan = plan_of(run)
    begin_sums(run, plan, plan.layers)
    return run


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captured") / "run"
    captured_run(path, images=IMAGES, batch=BATCH_IMAGES)
    return path


@pytest.fixture(scope="module")
def undisturbed(captured: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """One process, one thread, the same lanes and blocks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = begin(captured, tmp_path_factory.mktemp("undisturbed") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "pieces", batch_by_batch)
        accumulate_stream(run, plan_of(run))
    torch.set_num_threads(threads)
    return statistics_arrays(run)


def assert_undisturbed(run: Run, undisturbed: dict[str, np.ndarray]) -> None:
    assert largest_difference(statistics_arrays(run), undisturbed) <= DOCUMENTED
    assert verify_run(run) == []


def kept_sums(path: Path) -> bool:
    """Whether any lane has a record; the run is being written, and drafts are dropped under the walker's feet."""
    return any("lane-" in folder and "record.json" in files for folder, _, files in os.walk(path))


def start_and_wait(cluster: ClusterProcesses, run: Run, moment: float) -> ForkServerProcess:
    """The client, so many seconds after the first sums were kept; it may have ended before."""
    client = cluster.start_client("accumulate", run.url, "--folds", str(FOLDS))
    deadline = time.monotonic() + 60
    while client.is_alive() and not kept_sums(Path(run.url)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    client.join(moment)
    return client


def finish(cluster: ClusterProcesses, client: ForkServerProcess) -> None:
    client.join(120)
    assert client.exitcode == 0, cluster.printed()


def disturb(
    captured: Path,
    folder: Path,
    chosen: random.Random,
    strike: Callable[[ClusterProcesses, ForkServerProcess, Run], None],
) -> Run:
    """Strike in the middle of an accumulation; again, and sooner, if it had ended by then."""
    longest = LONGEST_SECONDS
    for attempt in range(6):
        run = begin(captured, folder / str(attempt))
        with cluster_processes(folder, pause_seconds=0.01) as cluster:
            client = start_and_wait(cluster, run, chosen.uniform(0, longest))
            if client.is_alive():
                strike(cluster, client, run)
                return run
            assert client.exitcode == 0, cluster.printed()
        longest /= 2
    raise AssertionError("every accumulation had ended before it was struck")


def kill_workers(chosen: random.Random) -> Callable[[ClusterProcesses, ForkServerProcess, Run], None]:
    """One worker, its successor or the other, and so on; the client notices nothing."""

    def strike(cluster: ClusterProcesses, client: ForkServerProcess, _: Run) -> None:
        for _kill in range(3):
            victim = chosen.choice(cluster.workers)
            kill(victim)
            cluster.workers.remove(victim)
            cluster.start_worker()
            client.join(chosen.uniform(0, 0.5))
        finish(cluster, client)

    return strike


def kill_scheduler(cluster: ClusterProcesses, client: ForkServerProcess, run: Run) -> None:
    """The client says what happened; the workers end by themselves, not before their tasks do."""
    assert cluster.scheduler is not None
    kill(cluster.scheduler)
    cluster.start_scheduler()
    cluster.start_worker()
    client.join(60)
    assert client.exitcode == 1, cluster.printed()
    assert "ClusterError" in cluster.printed()
    finish(cluster, start_and_wait(cluster, run, 0.0))


def kill_client(cluster: ClusterProcesses, client: ForkServerProcess, run: Run) -> None:
    """The workers are in the middle of their tasks when the next client sends the same ones."""
    kill(client)
    finish(cluster, start_and_wait(cluster, run, 0.0))


SLOW_SEEDS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_worker_is_killed(captured: Path, undisturbed: dict[str, np.ndarray], tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    assert_undisturbed(disturb(captured, tmp_path, chosen, kill_workers(chosen)), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_scheduler_is_killed(
    captured: Path, undisturbed: dict[str, np.ndarray], tmp_path: Path, seed: int
) -> None:
    assert_undisturbed(disturb(captured, tmp_path, random.Random(100 + seed), kill_scheduler), undisturbed)


@pytest.mark.parametrize("seed", [0, *SLOW_SEEDS])
def test_the_client_is_killed(
    captured: Path, undisturbed: dict[str, np.ndarray], tmp_path: Path, seed: int
) -> None:
    assert_undisturbed(disturb(captured, tmp_path, random.Random(200 + seed), kill_client), undisturbed)
