"""The queue without a service: leases, one job per run, recovery, events in the order of commits.

On SQLite, and on PostgreSQL where it is installed.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from streamsparse.service.jobs.database import jobs, open_database, shared_secret
from streamsparse.service.jobs.events import read_since
from streamsparse.service.jobs.queue import LeaseLost, Queue
from streamsparse.service.jobs.submission import Submission, submit
from streamsparse.service.settings import Timing
from streamsparse.store import processes


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    engine = open_database(database_url)
    yield Queue(engine, Timing(lease_seconds=30.0))
    engine.dispose()


def add(queue: Queue, run: str, kind: str = "verify") -> str:
    return str(submit(queue, Submission(run, f"/{run}", kind, {}, "test"), 1000)[0]["id"])


def owner() -> str:
    return json.dumps(processes.identity())


def test_jobs_of_one_run_are_claimed_one_after_the_other(queue: Queue) -> None:
    first, second, other = add(queue, "a"), add(queue, "a"), add(queue, "b")
    claimed = [queue.claim("me"), queue.claim("me"), queue.claim("me")]
    assert [job and job["id"] for job in claimed] == [first, other, None]
    queue.finish(first, "me", "succeeded", result={})
    again = queue.claim("me")
    assert again is not None
    assert again["id"] == second


def test_many_services_claim_every_job_once(database_url: str) -> None:
    queues = [Queue(open_database(database_url), Timing()) for _ in range(4)]
    expected = [add(queues[0], f"run-{number % 7}") for number in range(28)]
    running: Counter[str] = Counter()
    done: list[str] = []
    lock = threading.Lock()

    def work(queue: Queue, name: str) -> None:
        while len(done) < len(expected):
            job = queue.claim(name)
            if job is None:
                time.sleep(0.001)
                continue
            with lock:
                running[job["run"]] += 1
                assert running[job["run"]] == 1
            queue.heartbeat(job["id"], name, progress=[], log="", events=[{"type": "notice", "n": name}])
            with lock:
                running[job["run"]] -= 1
                done.append(job["id"])
            queue.finish(job["id"], name, "succeeded", result={})

    threads = [threading.Thread(target=work, args=[queue, f"w{n}"]) for n, queue in enumerate(queues)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == sorted(expected)
    for job in expected:
        numbers = [event.number for event in read_since(queues[0].engine, [(job, 0)])]
        assert numbers == [1, 2, 3, 4]
    for queue in queues:
        queue.engine.dispose()


def test_an_expired_lease_is_lost_and_the_job_is_queued_again(queue: Queue) -> None:
    job = add(queue, "a")
    queue.claim(owner())
    assert queue.recover() == 0  # this process lives, and the lease holds
    with queue.engine.begin() as connection:
        connection.execute(update(jobs).values(lease_expires=time.time() - 1))
    assert queue.recover() == 1
    found = queue.find(job)
    assert found is not None
    assert found["state"] == "queued"
    assert "resumes" in found["reason"]
    with pytest.raises(LeaseLost):
        queue.heartbeat(job, owner(), progress=[], log="", events=[])
    with pytest.raises(LeaseLost):
        queue.finish(job, owner(), "succeeded", result={})


def test_a_dead_process_of_this_machine_is_noticed_before_its_lease_expires(queue: Queue) -> None:
    job = add(queue, "a")
    queue.claim(json.dumps({**processes.identity(), "started": "1"}))  # a process number that was used again
    assert queue.recover() == 1
    found = queue.find(job)
    assert found is not None
    assert found["state"] == "queued"


def test_a_cancelled_job_of_a_dead_service_is_not_begun_again(queue: Queue) -> None:
    job = add(queue, "a")
    queue.claim(json.dumps({**processes.identity(), "started": "1"}))
    queue.cancel(job)
    queue.recover()
    found = queue.find(job)
    assert found is not None
    assert found["state"] == "cancelled"
    assert queue.claim("me") is None


def test_waiting_jobs_are_claimed_when_their_time_has_come(queue: Queue) -> None:
    job = add(queue, "a")
    queue.claim("me")
    queue.finish(job, "me", "waiting", reason="the cluster is gone", not_before=time.time() + 3600)
    assert queue.claim("me") is None
    queue.retry(job)
    claimed = queue.claim("me")
    assert claimed is not None
    assert claimed["attempts"] == 2


def test_a_waiting_job_is_not_overtaken_by_a_later_one_of_its_run(queue: Queue) -> None:
    first, second, other = add(queue, "a", "accumulate"), add(queue, "a", "solve"), add(queue, "b")
    queue.claim("me")
    queue.finish(first, "me", "waiting", reason="the cluster is gone", not_before=time.time() + 3600)
    claimed = queue.claim("me")
    assert claimed is not None
    assert claimed["id"] == other  # statistics come before a solution
    assert queue.claim("me") is None
    queue.cancel(first)
    claimed = queue.claim("me")
    assert claimed is not None
    assert claimed["id"] == second


def test_jobs_that_wait_are_bounded(queue: Queue) -> None:
    from streamsparse.service.problems import Refusal

    add(queue, "a")
    with pytest.raises(Refusal) as refused:
        submit(queue, Submission("a", "/a", "verify", {}, "test"), 1)
    assert refused.value.status == 429


def test_secrets_are_shared_by_all_processes(database_url: str) -> None:
    first, second = open_database(database_url), open_database(database_url)
    assert shared_secret(first, "signer") == shared_secret(second, "signer")
    assert len(shared_secret(first, "signer")) == 32
    first.dispose()
    second.dispose()


def test_services_that_start_at_once_make_the_tables_once(database_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        engines = list(pool.map(open_database, [database_url] * 6))
    assert len({shared_secret(engine, "signer") for engine in engines}) == 1
    for engine in engines:
        engine.dispose()
