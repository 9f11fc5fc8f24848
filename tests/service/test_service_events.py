"""The hub: many listeners, one look at the database; slow ones catch up; what is deleted is told; streams end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import event as database_event
from sqlalchemy import update

from streamsparse.service.jobs.database import jobs, open_database
from streamsparse.service.jobs.events import append, read_since, trim
from streamsparse.service.jobs.hub import HELLO, Hub
from streamsparse.service.jobs.queue import Queue
from streamsparse.service.jobs.submission import Submission, submit
from streamsparse.service.settings import Retention, Timing


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    engine = open_database(database_url)
    yield Queue(engine, Timing())
    engine.dispose()


def test_many_listeners_hear_everything_and_cost_one_query(queue: Queue) -> None:
    job = str(submit(queue, Submission("a", "/a", "verify", {}, "test"), 10)[0]["id"])
    queue.claim("me")
    queries = 0

    def count(*_: object) -> None:
        nonlocal queries
        queries += 1

    async def listen(hub: Hub, after: int) -> list[bytes]:
        return [frame async for frame in hub.listen(job, after)]

    async def run() -> list[list[bytes]]:
        nonlocal queries
        hub = Hub(queue.engine, 0.1)
        hub.start()
        listeners = [asyncio.create_task(listen(hub, number % 3)) for number in range(300)]
        while hub.listeners < 300:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # what was there is read
        database_event.listen(queue.engine, "before_cursor_execute", count)
        await asyncio.sleep(1.0)
        idle = queries
        database_event.remove(queue.engine, "before_cursor_execute", count)
        for number in range(5):
            events = [{"type": "notice", "stage": "x", "message": str(number)}]
            await asyncio.to_thread(queue.heartbeat, job, "me", progress=[], log="", events=events)
        await asyncio.to_thread(queue.finish, job, "me", "succeeded", result={})
        found = await asyncio.wait_for(asyncio.gather(*listeners), 20)
        assert hub.listeners == 0
        await hub.close()
        assert 0 < idle <= 30  # ten looks a second, each a few statements, for 300 listeners
        return found

    for after, frames in enumerate(asyncio.run(run())[:3]):
        assert frames[0] == HELLO
        numbers = [int(frame.split(b"\n")[0].removeprefix(b"id: ")) for frame in frames[1:]]
        assert numbers == list(range(after + 1, 9))
        assert b'"state": "succeeded"' in frames[-1]


def test_a_listener_from_the_future_waits_for_what_comes(queue: Queue) -> None:
    job = str(submit(queue, Submission("a", "/a", "verify", {}, "test"), 10)[0]["id"])

    async def run() -> list[bytes]:
        hub = Hub(queue.engine, 0.05)
        hub.start()
        first = asyncio.create_task(collect(hub, 10**9))
        second = asyncio.create_task(collect(hub, 0))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(queue.cancel, job)
        late, whole = await asyncio.wait_for(asyncio.gather(first, second), 10)
        await hub.close()
        assert len(whole) == 3  # hello, queued, cancelled
        return late

    async def collect(hub: Hub, after: int) -> list[bytes]:
        return [frame async for frame in hub.listen(job, after)]

    late = asyncio.run(run())
    assert b"cancelled" in late[-1]


def test_closing_ends_streams(queue: Queue) -> None:
    job = str(submit(queue, Submission("a", "/a", "verify", {}, "test"), 10)[0]["id"])

    async def run() -> int:
        hub = Hub(queue.engine, 0.05)
        hub.start()
        listener = asyncio.create_task(collect(hub))
        await asyncio.sleep(0.2)
        await hub.close()
        return len(await asyncio.wait_for(listener, 5))

    async def collect(hub: Hub) -> list[bytes]:
        return [frame async for frame in hub.listen(job, 0)]

    assert asyncio.run(run()) == 2


def told(queue: Queue, job: str, count: int) -> None:
    """So many events by a job that runs."""
    for number in range(count):
        queue.heartbeat(job, "me", progress=[], log="", events=[{"type": "notice", "stage": "x", "n": number}])


def frames(queue: Queue, job: str, after: int) -> list[tuple[int, str]]:
    """Number and type of all that a listener hears of a job that has ended."""

    async def run() -> list[bytes]:
        hub = Hub(queue.engine, 0.05)
        hub.start()
        found = [frame async for frame in hub.listen(job, after)]
        await hub.close()
        return found[1:]

    lines = [frame.decode().split("\n") for frame in asyncio.run(run())]
    return [(int(one[0].removeprefix("id: ")), one[1].removeprefix("event: ")) for one in lines]


@pytest.mark.parametrize("keep", [1, 7, 20])
def test_a_job_that_has_ended_keeps_its_last_events(database_url: str, keep: int) -> None:
    queue = Queue(open_database(database_url), Timing(), Retention(40, keep, 30.0))
    job = str(submit(queue, Submission("a", "/a", "verify", {}, "test"), 10)[0]["id"])
    other = str(submit(queue, Submission("b", "/b", "verify", {}, "test"), 10)[0]["id"])
    queue.claim("me")
    told(queue, job, 100)
    kept = [event.number for event in read_since(queue.engine, [(job, 0)])]
    assert 40 <= len(kept) <= 42  # of 102, while it runs
    assert kept[-1] == 102
    queue.finish(job, "me", "succeeded", result={})
    first = 103 - keep + 1
    assert [event.number for event in read_since(queue.engine, [(job, 0)])] == list(range(first, 104))
    assert frames(queue, job, 0)[:2] == [(first - 1, "reset"), (first, "notice" if keep > 1 else "state")]
    assert frames(queue, job, first - 1)[0][0] == first  # nothing is missing: no reset
    assert frames(queue, job, first - 2)[0] == (first - 1, "reset")
    assert frames(queue, job, 0)[-1] == (103, "state")
    assert queue.forget() == 0  # it has just ended
    with queue.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(finished=time.time() - 31 * 86400))
    assert queue.forget() == keep - 1
    assert frames(queue, job, 0) == [(102, "reset"), (103, "state")]
    assert len(read_since(queue.engine, [(other, 0)])) == 1
    with queue.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(state="failed"))
    queue.retry(job)  # numbers go on
    assert [event.number for event in read_since(queue.engine, [(job, 0)])] == [103, 104]
    assert queue.forget() == 0
    queue.engine.dispose()


def test_a_listener_whose_events_were_deleted_meanwhile_is_told(queue: Queue) -> None:
    job = str(submit(queue, Submission("a", "/a", "verify", {}, "test"), 10)[0]["id"])
    queue.claim("me")

    async def run() -> list[bytes]:
        hub = Hub(queue.engine, 0.3)
        hub.start()
        listener = asyncio.create_task(collect(hub))
        await asyncio.sleep(0.6)
        with queue.engine.begin() as connection:  # between two looks of the hub
            for _ in range(10):
                append(connection, job, {"type": "notice", "stage": "x", "message": ""})
            trim(connection, job, 12, 3)
        queue.finish(job, "me", "succeeded", result={})
        found = await asyncio.wait_for(listener, 10)
        await hub.close()
        return found

    async def collect(hub: Hub) -> list[bytes]:
        return [frame async for frame in hub.listen(job, 2)]

    numbers = [frame.split(b"\n")[:2] for frame in asyncio.run(run())[1:]]
    assert numbers[0] == [b"id: 9", b"event: reset"]
    assert [int(one[0].removeprefix(b"id: ")) for one in numbers] == [9, 10, 11, 12, 13]
