"""A service with a Dask cluster beside it, every process of which is killed while jobs run.

    supervisor   starts the scheduler, the workers and the service, and starts again what has ended, after a pause:
                 of up to 4 s; of 30 s once for a scheduler that is killed several times, and for all workers
    striker      kill -9 of one of them when jobs are in the middle of something, then the next, and so on
    jobs         accumulate and solve on copies of one captured run; submitted by HTTP, all of them before a kill

Scheduler and workers are `dask scheduler` and `dask worker`, each in a process of its own with one thread. States
and reasons are read from the service's database, for it may be dead when they are asked for.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.client import Client
from streamsparse.service.jobs.database import open_database
from streamsparse.service.jobs.events import read_since
from streamsparse.service.jobs.queue import FINISHED, Queue
from streamsparse.service.settings import Timing
from streamsparse.solve import solve
from streamsparse.store import Run
from streamsparse.store.solution import read_solution, read_weights
from streamsparse.verification import verify_run
from tests.object_server import answers, free_port
from tests.small import largest_difference, statistics_arrays

FOLDS, BUDGET = 4, "params=0.5"
PARAMETERS: dict[str, dict[str, Any]] = {
    "accumulate": {"folds": FOLDS, "products": "float64"},
    "solve": {"budget": BUDGET},
}
_KEY = re.compile(r"-[0-9a-f]{8}-[0-9a-f-]{27}")  # of a task, in what Dask says
LONGEST_SECONDS = 1800.0
RESTART_SECONDS = 0.2
AWAY_SECONDS = (0.2, 4.0)
LONG_AWAY_SECONDS = 30.0
"""Longer than a job looks for its scheduler, or for workers."""
ALL_WORKERS = "all workers"
START_SECONDS = 60.0


@dataclass
class Supervised:
    """A process that is started again when it ends.

    Attributes:
        command: of the process.
        pause_seconds: until the next start.
        starts: so far.
    """

    command: Sequence[str]
    pause_seconds: float = RESTART_SECONDS
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _ended: float | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def look(self, output: Path) -> None:
        """Start it if it has ended and the pause is over."""
        if self.alive:
            return
        if self._ended is None:
            self._ended = time.monotonic()
            self._close()
        if self._process is None or time.monotonic() - self._ended >= self.pause_seconds:
            with output.open("ab") as stream:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=stream, stderr=stream,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
            self.starts, self._ended, self.pause_seconds = self.starts + 1, None, RESTART_SECONDS

    def kill(self) -> bool:
        """`kill -9`, and wait for the end; False if it had ended before."""
        if self._process is None:
            return False
        was_alive = self.alive
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._close()
        return was_alive

    def _close(self) -> None:
        """Give back the pipe of a process that has ended: a service serves until its standard input ends."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


@dataclass
class Camp:
    """All processes, and the thread that supervises them."""

    processes: dict[str, list[Supervised]]
    output: Path
    url: str
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def supervise(self) -> None:
        """Until `stop`."""
        while not self._stopping.wait(0.05):
            with self._lock:
                for process in self._all():
                    process.look(self.output)

    def strike(self, kind: str, away_seconds: float, chosen: random.Random) -> None:
        """Kill one process of a kind, as soon as one is alive, or all workers; it is away for a while."""
        if kind == ALL_WORKERS:
            with self._lock:
                for worker in self.processes["worker"]:
                    worker.kill()
                    worker.pause_seconds = away_seconds
            return
        while True:
            victim = chosen.choice(self.processes[kind])
            with self._lock:
                if victim.kill():
                    victim.pause_seconds = away_seconds
                    return
            time.sleep(0.05)

    def stop(self, supervisor: threading.Thread) -> None:
        """Kill everything."""
        self._stopping.set()
        supervisor.join()
        for process in self._all():
            process.kill()

    def _all(self) -> Iterator[Supervised]:
        for processes in self.processes.values():
            yield from processes


@contextmanager
def camped(root: Path, folder: Path, workers: int = 2) -> Iterator[Camp]:
    """A supervised scheduler, its workers, and a service over ROOT that works with them; two jobs at a time."""
    scheduler, service = free_port(), free_port()
    address, dask = f"tcp://127.0.0.1:{scheduler}", str(Path(sys.executable).with_name("dask"))
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    worker = [dask, "worker", address, *local, "--nthreads", "1", "--no-nanny", "--memory-limit", "0"]
    place = ["--local-directory", str(folder / "workers")]
    serve = [sys.executable, "-m", "tests.service.process", str(root), "2", "load"]
    camp = Camp(
        {
            "scheduler": [Supervised([dask, "scheduler", *local, "--port", str(scheduler)])],
            "worker": [Supervised([*worker, *place]) for _ in range(workers)],
            "service": [Supervised([*serve, "--port", str(service), "--scheduler", address])],
        },
        folder / "output.txt",
        f"http://127.0.0.1:{service}",
    )
    supervisor = threading.Thread(target=camp.supervise, name="supervisor")
    supervisor.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(service):
            assert time.monotonic() < deadline, camp.output.read_text()[-5000:]
            time.sleep(0.1)
        yield camp
    finally:
        camp.stop(supervisor)


def besieged(captured: Path, folder: Path, runs: int, kills: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Two jobs on each of so many copies of a captured run, under so many kills of each kind, in a random order.

    Returns:
        figures: jobs, kills, lost (not succeeded, not once, or not the result of an undisturbed run), reasons seen.
    """
    chosen, root = random.Random(seed), folder / "root"
    names = [f"run-{number}" for number in range(runs)]
    for name in names:
        shutil.copytree(captured, root / name)
    undisturbed = outcome_of(undisturbed_run(captured, folder / "undisturbed"))
    order = [(kind, chosen.uniform(*AWAY_SECONDS)) for kind, count in kills.items() for _ in range(count)]
    chosen.shuffle(order)
    schedulers = [number for number, (kind, _) in enumerate(order) if kind == "scheduler"]
    for number in schedulers[1:2]:  # one of several
        order[number] = ("scheduler", LONG_AWAY_SECONDS)
    order = [(kind, LONG_AWAY_SECONDS if kind == ALL_WORKERS else seconds) for kind, seconds in order]
    started = time.perf_counter()
    with camped(root, folder) as camp:
        with Client(camp.url) as client:
            jobs = [
                str(client.submit(name, kind, **PARAMETERS[kind])["id"]) for name in names for kind in PARAMETERS
            ]
        queue = Queue(open_database(f"sqlite:///{root / '.streamsparse' / 'service.db'}"), Timing())
        struck = siege(camp, queue, jobs, order, chosen)
        seconds = time.perf_counter() - started
        starts = {kind: sum(one.starts for one in found) for kind, found in camp.processes.items()}
    about = [told(queue, job) for job in jobs]
    queue.engine.dispose()
    wrong = [name for name in names if differences(Run.at(root / name), undisturbed)]
    return {
        "jobs": len(jobs), "kills": dict(struck), "starts": starts,
        "attempts": sum(one["attempts"] for one in about),
        "lost": sum(not one["done_once"] for one in about), "wrong_results": len(wrong),
        "waited_jobs": sum(bool(one["reasons"]) for one in about),
        "reasons": dict(Counter(reason for one in about for reason in one["reasons"]).most_common()),
        "errors": [one["error"] for one in about if one["error"]], "seconds": seconds,
    }  # fmt: skip


def siege(
    camp: Camp, queue: Queue, jobs: list[str], order: list[tuple[str, float]], chosen: random.Random
) -> Counter[str]:
    """Strike, spread over the jobs, until all have ended; how often each kind was struck in the middle of a job."""
    struck: Counter[str] = Counter()
    deadline = time.monotonic() + LONGEST_SECONDS
    while (ended := _ended(queue, jobs)) < len(jobs):
        assert time.monotonic() < deadline, camp.output.read_text()[-5000:]
        due = sum(struck.values()) < len(order) and ended >= sum(struck.values()) * len(jobs) // (len(order) + 1)
        if due and _under_way(queue):
            time.sleep(chosen.uniform(0, 1.5))
            kind, away_seconds = order[sum(struck.values())]
            camp.strike(kind, away_seconds, chosen)
            struck[kind] += 1
        time.sleep(0.05)
    return struck


def _ended(queue: Queue, jobs: list[str]) -> int:
    return sum(job["state"] in FINISHED for job in queue.page(limit=2 * len(jobs)))


def _under_way(queue: Queue) -> bool:
    """Whether a running job has begun a stage that has not ended."""
    running = queue.page(state="running")
    return any(stage["done"] and not stage["finished"] for job in running for stage in job["progress"])


def told(queue: Queue, job: str) -> dict[str, Any]:
    """What a job's events say of it."""
    found, row = [event.data for event in read_since(queue.engine, [(job, 0)])], queue.find(job)
    assert row is not None
    states = [event for event in found if event["type"] == "state"]
    succeeded = [event for event in states if event["state"] == "succeeded"]
    return {
        "done_once": row["state"] == "succeeded" and len(succeeded) == 1 and states[-1] == succeeded[0],
        "reasons": [f"{event['state']}: {_KEY.sub('', event['reason'])}" for event in states if "reason" in event],
        "attempts": row["attempts"], "error": row["error"],
    }  # fmt: skip


def undisturbed_run(captured: Path, path: Path) -> Run:
    """The same two stages in one process that nobody kills."""
    run = Run.at(shutil.copytree(captured, path))
    accumulate(run, settings=AccumulateSettings(FOLDS, product_dtype="float64"), executor="serial")
    solve(run, budget=BUDGET)
    return run


@dataclass(frozen=True)
class Outcome:
    """What a run came to: statistics by layer, fold and field; positions kept by group; weights by layer."""

    statistics: dict[str, np.ndarray]
    kept: dict[str, list[int]]
    weights: dict[str, np.ndarray]


def outcome_of(run: Run) -> Outcome:
    """Of a solved run."""
    solution = read_solution(run)
    weights = {layer: np.asarray(pair[0]) for layer, pair in read_weights(run, solution).items()}
    kept = {group: [int(one) for one in positions] for group, positions in solution.plan.keep.items()}
    return Outcome(statistics_arrays(run), kept, weights)


def differences(run: Run, undisturbed: Outcome) -> list[str]:
    """What is not as in an undisturbed run: damage, statistics (1e-12), channels, weights (1e-6)."""
    found, same = outcome_of(run), undisturbed
    return [
        what
        for what, wrong in {
            "damage": bool(verify_run(run)),
            "statistics": largest_difference(found.statistics, same.statistics) > 1e-12,
            "channels": found.kept != same.kept,
            "weights": found.kept == same.kept and largest_difference(found.weights, same.weights) > 1e-6,
        }.items()
        if wrong
    ]
