"""A cluster that is there, has no workers, or does not answer, as the watch of a job sees it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamsparse.errors import ClusterError
from streamsparse.service.cluster_watch import watched_cluster
from tests.object_server import free_port

PATIENCE_SECONDS = 1.0
DASK = str(Path(sys.executable).with_name("dask"))


@contextmanager
def dask(*arguments: str) -> Iterator[None]:
    command = [DASK, *arguments, "--host", "127.0.0.1", "--no-dashboard"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def seen(address: str, seconds: float) -> list[ClusterError]:
    """What a watch finds in so many seconds, or sooner."""
    found: list[ClusterError] = []
    with watched_cluster(address, PATIENCE_SECONDS, found.append):
        deadline = time.monotonic() + seconds
        while not found and time.monotonic() < deadline:
            time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_cluster_without_workers_is_given_up(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with dask("scheduler", "--port", str(port)):
        while (found := seen(address, 30))[0].got != "no workers":  # until the scheduler answers
            assert "does not answer" in str(found[0].got)
        worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path))
        with dask(*worker):
            deadline = time.monotonic() + 60
            while seen(address, 3 * PATIENCE_SECONDS):  # until the worker is there: then nothing is found
                assert time.monotonic() < deadline
        assert [error.got for error in seen(address, 30)] == ["no workers"]
    (lost,) = seen(address, 30)
    assert "does not answer" in str(lost.got)
    assert lost.where == address


def test_a_job_without_a_cluster_has_nothing_to_watch() -> None:
    with watched_cluster(None, 0.0, not_called):
        time.sleep(0.1)


def not_called(error: ClusterError) -> None:
    raise AssertionError(error)


def test_a_watch_and_its_job_may_both_be_the_first_to_need_dask() -> None:
    """In a process of its own, which has not imported it: neither may meet half of it."""
    script = """
from streamsparse.service.cluster_watch import watched_cluster
with watched_cluster("tcp://127.0.0.1:9", 0.01, lambda error: None):
    import streamsparse.executors.cluster
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert (found.returncode, found.stderr) == (0, "")
