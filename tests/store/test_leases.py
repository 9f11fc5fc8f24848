"""Locks in a bucket, between real processes, on a real S3 server."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple

import pytest

from streamsparse.errors import RunLockedError, StorageError
from streamsparse.store import layout, processes
from streamsparse.store.bucket import Bucket, open_bucket
from streamsparse.store.documents import Documents
from streamsparse.store.leases import TIMING, Timing, leased
from tests.object_server import Place

HURRIED = Timing(renewal_seconds=0.3, lapse_seconds=1.5, expiry_seconds=3.0, retry_seconds=0.1)

HOLDER = """
import sys
from streamsparse.store import processes
from streamsparse.store.bucket import open_bucket
from streamsparse.store.documents import Documents
from streamsparse.store.leases import Timing, leased

url, kind, machine, *seconds = sys.argv[1:]
if machine:
    processes._machine = lambda: machine
bucket = open_bucket(url)
with leased(bucket, "run", shared=kind == "shared", timing=Timing(*map(float, seconds))):
    print("locked", flush=True)
    for line in sys.stdin:
        Documents(bucket).write(line.strip(), b"written")
        print("written", flush=True)
"""


@contextmanager
def held(
    place: Place, kind: str = "exclusive", *, elsewhere: bool = False, timing: Timing = HURRIED
) -> Iterator[subprocess.Popen[str]]:
    """Another process, on this or seemingly on another machine, that holds the lock until its input closes."""
    arguments = [place.url, kind, "another machine" if elsewhere else "", *map(str, astuple(timing))]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        if process.poll() is None:
            process.communicate(timeout=20)


def locks_of(bucket: Bucket) -> list[str]:
    return [item.key for item in bucket.listing("locks")]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_another_process_is_kept_out_and_named(place: Place, elsewhere: bool) -> None:
    bucket = open_bucket(place.url)
    with held(place, elsewhere=elsewhere) as process:
        for shared in (False, True):
            with pytest.raises(RunLockedError) as raised, leased(bucket, "run", shared=shared, timing=HURRIED):
                pass
            assert f"process {process.pid} on {platform.node()}" in str(raised.value.got)
    with leased(bucket, "run", timing=HURRIED):
        assert len(locks_of(bucket)) == 1
    assert locks_of(bucket) == []


def test_shared_holders_tolerate_each_other_but_no_writer(place: Place) -> None:
    bucket = open_bucket(place.url)
    with held(place, "shared"):
        with leased(bucket, "run", shared=True, timing=HURRIED), leased(bucket, "other", timing=HURRIED):
            pass
        with pytest.raises(RunLockedError), leased(bucket, "run", timing=HURRIED):
            pass


def test_a_waiting_process_comes_next(place: Place) -> None:
    bucket, order = open_bucket(place.url), []

    def wait() -> None:
        with leased(bucket, "run", wait=True, timing=HURRIED):
            order.append("second")

    with leased(bucket, "run", timing=HURRIED):
        other = threading.Thread(target=wait)
        other.start()
        time.sleep(1)
        order.append("first")
    other.join(20)
    assert order == ["first", "second"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_after_a_killed_holder(place: Place, elsewhere: bool) -> None:
    """On the same machine at once, even with the times of the product; elsewhere after the expiry, not before."""
    timing = HURRIED if elsewhere else Timing()
    with held(place, elsewhere=elsewhere, timing=timing) as process:
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        started = time.monotonic()
        with leased(open_bucket(place.url), "run", timing=timing):
            waited = time.monotonic() - started
    if elsewhere:
        assert HURRIED.lapse_seconds < waited < 3 * HURRIED.expiry_seconds
    else:
        assert waited < timing.expiry_seconds / 2


def test_a_holder_that_slept_writes_no_more(place: Place) -> None:
    with held(place, elsewhere=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("before\n")
        process.stdin.flush()
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with leased(open_bucket(place.url), "run", timing=HURRIED):
                pass
            process.stdin.write("after\n")
            process.stdin.flush()
        finally:
            os.kill(process.pid, signal.SIGCONT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "StorageError: This process has lost its lock of the run" in errors
    documents = Documents(open_bucket(place.url))
    assert documents.exists("before")
    assert not documents.exists("after")


def test_a_holder_that_is_cut_off_writes_no_more(place: Place) -> None:
    bucket = open_bucket(place.url)
    documents = Documents(bucket)

    def work() -> None:
        documents.write("before", b"1")
        place.proxy.cut()
        time.sleep(HURRIED.lapse_seconds + 0.5)
        place.proxy.restore()
        bucket.guards[-1].__self__._renew()  # type: ignore[attr-defined]  # a heartbeat before the next write
        for write in (lambda: documents.write("after", b"1"), lambda: documents.delete("before")):
            with pytest.raises(StorageError, match="lost its lock"):
                write()

    with pytest.raises(StorageError, match="lost its lock"), leased(bucket, "run", timing=HURRIED):
        work()
    assert documents.keys("") == ["before"]
    with leased(bucket, "run", timing=HURRIED):
        documents.write("after", b"1")


def test_a_pause_that_no_clock_of_this_machine_counted(place: Place) -> None:
    """A virtual machine that was frozen: only the server's clock tells, at the end at the latest."""
    bucket = open_bucket(place.url)

    def freeze() -> None:
        lease = bucket.guards[-1].__self__  # type: ignore[attr-defined]
        lease._released.set()
        lease._heartbeat.join()
        lease._modified -= HURRIED.expiry_seconds

    with pytest.raises(StorageError, match="by the server's clock"), leased(bucket, "run", timing=HURRIED):
        freeze()


def test_the_lock_is_free_after_an_error(place: Place) -> None:
    bucket = open_bucket(place.url)
    with pytest.raises(KeyError), leased(bucket, "run", timing=HURRIED):
        raise KeyError
    assert locks_of(bucket) == []
    assert bucket.guards == []


def test_a_lock_left_behind_at_a_dead_server(place: Place) -> None:
    """The same process comes back without waiting for the expiry."""
    bucket = open_bucket(place.url)

    def fail() -> None:
        place.proxy.cut()
        raise KeyError

    with pytest.raises(KeyError), leased(bucket, "run"):
        fail()
    place.proxy.restore()
    assert len(locks_of(bucket)) == 1
    started = time.monotonic()
    with leased(bucket, "run"):
        assert time.monotonic() - started < TIMING.expiry_seconds / 2


def test_many_that_begin_at_once_never_hold_together(place: Place) -> None:
    """Eight threads add to a number in turn, with a pause between reading and writing."""
    place.proxy.latency_seconds = 0.02
    failures: list[BaseException] = []

    def add() -> None:
        bucket = open_bucket(place.url)
        documents = Documents(bucket)
        try:
            for _ in range(2):
                with leased(bucket, "begin", wait=True, timing=HURRIED):
                    found = documents.read_json("number") or {"value": 0}
                    time.sleep(0.01)
                    documents.write_json("number", {"value": found["value"] + 1})
        except BaseException as error:  # noqa: BLE001  shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [str(failure) for failure in failures] == []
    assert Documents(open_bucket(place.url)).read_json("number") == {"value": 16}


def test_a_damaged_lock_expires(place: Place) -> None:
    bucket = open_bucket(place.url)
    Documents(bucket).write(layout.lease_key("run", "damaged", shared=False), b"{")
    with leased(bucket, "run", timing=HURRIED):
        assert len(locks_of(bucket)) == 1


def test_identities() -> None:
    own = processes.identity()
    assert processes.is_alive(json.loads(json.dumps(own))) is True
    assert processes.is_alive({**own, "started": "1"}) is False
    assert processes.is_alive({**own, "machine": "another"}) is None
    assert processes.is_alive({}) is None
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        time.sleep(0.5)  # a zombie, which is dead although its number is taken
        assert processes.is_alive({**own, "process": ended.pid}) is False
