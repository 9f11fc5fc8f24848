"""The service under load, under fire, and killed.

    python -m tests.benchmarks.service [--quick] [--json] [--write] [--parts load jobs cluster plans hostile]
                                       [--solved RUN ...]

load     200 downloads of a 50 MB checkpoint at the same time beside 500 event streams of a job that reports five
         times a second; meanwhile /healthz is asked every 20 ms by a process of its own. Server, downloads, streams
         and probe share this machine's cores. Every download is hashed and compared with its ETag.
jobs     20 jobs on five runs; the service is killed with -9 three times while they run, and started again. A job
         is lost if it does not end well.
cluster  20 jobs, an accumulation and a solve on each of ten captured runs, by a service with a Dask scheduler and
         two workers; workers are killed with -9 six times, the scheduler four times, the service four times, and
         all workers together once, in a random order. Each is started again after up to 4 s, the scheduler once
         after 30 s, all workers after 30 s. A job is lost if it does not succeed exactly once; every run is
         compared with an undisturbed one (statistics to 1e-12, channels, weights). See `tests/service/siege.py`.
plans    200 plans of each run of --solved, no two alike, by one client; see `tests/benchmarks/service_plans.py`.
         Without --solved of a network of four layers.
hostile  the committed list `tests/service/hostile.py`; refused means 4xx.

The quick run takes 20 downloads of 5 MB, 50 streams, 4 jobs with one kill, and 2 jobs on the cluster with three.
Parts that are not run keep their committed figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from streamsparse.service.jobs.database import open_database
from streamsparse.service.jobs.queue import Queue
from streamsparse.service.jobs.submission import Submission, submit
from streamsparse.service.settings import Timing
from tests.benchmarks.machine import about
from tests.benchmarks.service_plans import first_plan_ms, plans
from tests.benchmarks.service_results import PARTS, summary, write
from tests.service.hostile import HOSTILE, send
from tests.service.live import make_run
from tests.service.siege import ALL_WORKERS, besieged
from tests.small import captured_run

JOB_SECONDS = 600.0
FRESH_SERVICES = 5
"""Whose first plan is timed."""


@contextmanager
def served(root: Path, jobs: int, mode: str, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process of its own, and its URL."""
    command = [sys.executable, "-m", "tests.service.process", str(root), str(jobs), mode, *more]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        while httpx.get(f"{url}/healthz", timeout=60).status_code != 200:
            time.sleep(0.05)
        yield process, url
        process.kill()


def client(kind: str, url: str, amount: float) -> subprocess.Popen[str]:
    """A process of clients."""
    command = [sys.executable, "-m", "tests.benchmarks.service_load", kind, url, str(amount)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The last line of a process of clients."""
    out, _ = process.communicate(timeout=1800)
    return dict(json.loads(out.strip().splitlines()[-1]))


def load(solved: Path, place: Path, quick: bool) -> dict[str, Any]:
    """Downloads, streams and probes at the same time."""
    downloads, streams, size = (20, 50, 5_000_000) if quick else (200, 500, 50_000_000)
    root = place / "load"
    shutil.copytree(solved, root / "small")
    big = root / "small" / "checkpoints" / "big"
    big.mkdir()
    (big / "model.safetensors").write_bytes(os.urandom(size))
    shutil.copy(root / "small" / "checkpoints" / "pruned" / "config.json", big)
    with served(root, 0, "load") as (process, url), reporting_job(root) as job:
        watched = Peak(process.pid)
        listeners = client("listen", f"{url}/api/v1/jobs/{job}/events", streams)
        assert listeners.stdout is not None
        assert listeners.stdout.readline().strip() == "open"
        before = watched.bytes
        idle = ended(client("probe", url, 2 if quick else 10))
        fetching = client("download", f"{url}/api/v1/runs/small/checkpoints/big/files/model.safetensors", downloads)
        probes = []
        while fetching.poll() is None:
            probes.append(ended(client("probe", url, 2 if quick else 5)))
        fetched, heard = ended(fetching), ended(listeners)
        peak = watched.stop()
    busy = {name: max(found[name] for found in probes) for name in ("p50_ms", "p99_ms", "max_ms")}
    return {
        "downloads": fetched, "streams": heard, "health_with_streams": idle, "health_with_all": busy,
        "server_bytes_with_streams": before, "server_bytes_peak": peak,
    }  # fmt: skip


@contextmanager
def reporting_job(root: Path) -> Iterator[str]:
    """A job of which something is reported five times a second, as by a worker of another process."""
    queue = Queue(open_database(f"sqlite:///{root / '.streamsparse' / 'service.db'}"), Timing())
    job = str(submit(queue, Submission("small", str(root / "small"), "verify", {}, "benchmark"), 10)[0]["id"])
    queue.claim("benchmark")
    stopping = threading.Event()

    def report() -> None:
        done = 0
        while not stopping.wait(0.2):
            done += 1
            event = {"type": "progress", "stage": "x", "done": done, "total": None, "unit": "beats"}
            queue.heartbeat(job, "benchmark", progress=[], log="", events=[event])

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield job
    finally:
        stopping.set()
        thread.join()


class Peak:
    """The largest resident size of a process, looked at every 50 ms."""

    def __init__(self, process: int) -> None:
        self._process, self._stopping, self._peak = psutil.Process(process), threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def bytes(self) -> int:
        """Now."""
        return int(self._process.memory_info().rss)

    def stop(self) -> int:
        """The peak."""
        self._stopping.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._stopping.wait(0.05):
            self._peak = max(self._peak, self.bytes)


def killed_jobs(solved: Path, place: Path, quick: bool) -> dict[str, Any]:
    """Jobs that outlive the service."""
    runs, jobs, kills = (2, 4, 1) if quick else (5, 20, 3)
    root = place / "jobs"
    for number in range(runs):
        shutil.copytree(solved, root / f"run-{number}")
    submitted: list[str] = []
    started = time.perf_counter()
    for kill in range(kills + 1):
        with served(root, 2, "load") as (process, url), httpx.Client(base_url=url, timeout=60) as http:
            while len(submitted) < jobs:
                path = f"/api/v1/runs/run-{len(submitted) % runs}/jobs"
                submitted.append(http.post(path, json={"kind": "verify"}).json()["id"])
            wanted = jobs if kill == kills else (kill + 1) * jobs // (kills + 2)
            states = wait_for(http, submitted, wanted)
            if kill < kills:
                process.send_signal(signal.SIGKILL)
    attempts = [state["attempts"] for state in states]
    lost = sum(state["state"] != "succeeded" for state in states)
    return {
        "jobs": jobs, "kills": kills, "lost": lost, "attempts": sum(attempts),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def wait_for(http: httpx.Client, jobs: list[str], wanted: int) -> list[dict[str, Any]]:
    """Until so many have ended and, if more are to come, one is running; what all of them say."""
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        states = [http.get(f"/api/v1/jobs/{job}").json() for job in jobs]
        ended_now = sum(state["state"] in ("succeeded", "failed", "cancelled") for state in states)
        running = any(state["state"] == "running" for state in states)
        if ended_now >= wanted and (running or wanted == len(jobs)):
            break
        time.sleep(0.2)
    return states


def killed_cluster(place: Path, quick: bool) -> dict[str, Any]:
    """Jobs that outlive the cluster they work on, and the service."""
    kills = {"worker": 1, "scheduler": 1, "service": 1}
    if not quick:
        kills = {"worker": 6, "scheduler": 4, "service": 4, ALL_WORKERS: 1}
    captured_run(place / "captured", images=300, batch=4)
    return besieged(place / "captured", place / "cluster", 1 if quick else 10, kills, seed=20261122)


def planned(runs: Sequence[Path], place: Path, quick: bool) -> dict[str, Any]:
    """Plans of solved runs, each by a service of its own that has nothing else to do."""
    found = []
    for number, run in enumerate(runs):
        firsts = []
        database = f"sqlite:///{place / f'plans-{number}.db'}"
        for fresh in range(1 if quick else FRESH_SERVICES):
            with served(run.parent, 0, "load", "--database", f"{database}.{fresh}") as (_, url):
                firsts.append(first_plan_ms(url, run))
        with served(run.parent, 0, "load", "--database", database) as (process, url):
            found.append(plans(process, url, run, 20 if quick else 200) | {"first_ms": firsts})
    return {"runs": found}


def under_fire(solved: Path, place: Path) -> dict[str, Any]:
    """The hostile list against a service whose ROOT holds links out of it."""
    root, outside = place / "fire" / "root", place / "fire" / "outside"
    shutil.copytree(solved, root / "small")
    shutil.copytree(solved, outside)
    (root / "link").symlink_to(outside)
    (root / "file").write_text("not a run")
    (root / "small" / "checkpoints" / "pruned" / "link.safetensors").symlink_to("/etc/passwd")
    (root / "small" / "checkpoints" / "linked").symlink_to(outside / "checkpoints" / "pruned")
    with served(root, 0, "hostile") as (_, url):
        statuses = {hostile.name: send(url, hostile) for hostile in HOSTILE}
    not_refused = {name: status for name, status in statuses.items() if not 400 <= status < 500}
    return {"total": len(statuses), "refused": len(statuses) - len(not_refused), "not_refused": not_refused}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--solved", nargs="+", type=Path, default=[], help="runs with a solution, for the plans")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_run(place / "solved")
        for part in arguments.parts:
            measured_on = about()
            if part == "load":
                found[part] = load(place / "solved", place, arguments.quick)
            elif part == "jobs":
                found[part] = killed_jobs(place / "solved", place, arguments.quick)
            elif part == "cluster":
                found[part] = killed_cluster(place, arguments.quick)
            elif part == "plans":
                found[part] = planned(arguments.solved or [place / "solved"], place, arguments.quick)
            else:
                found[part] = under_fire(place / "solved", place)
            found[part]["about"] = measured_on
            print(part, json.dumps(found[part]), file=sys.stderr, flush=True)
    if arguments.write:
        write(found)
    if arguments.json:
        print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
