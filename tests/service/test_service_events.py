"""The hub: many listeners, one look at the database; slow ones catch up; a closed service ends its streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import event as database_event

from streamsparse.service.jobs.database import open_database
from streamsparse.service.jobs.hub import HELLO, Hub
from streamsparse.service.jobs.queue import Queue
from streamsparse.service.jobs.submission import Submission, submit
from streamsparse.service.settings import Timing


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(open_database(f"sqlite:///{tmp_path / 'q.db'}"), Timing())


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
