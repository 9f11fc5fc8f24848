"""Live events for any number of listeners: one look at the database per interval, however many they are.

database ──one query──> Hub ──> Channel (one per watched job; frames made once) ──> every listener
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from streamsparse.service.jobs.events import JobEvent, last_number, read_since, reset_before
from streamsparse.service.jobs.queue import FINISHED

HEARTBEAT_SECONDS = 15.0
_KEPT = 512
"""Frames that a channel keeps for slow listeners; who is further behind reads the database."""
HELLO, HEARTBEAT = b"retry: 2000\n\n", b": still here\n\n"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """An event as it is sent; `last` ends a stream."""

    number: int
    data: bytes
    last: bool


def frame_of(event: JobEvent) -> Frame:
    """A server-sent event: its number is the id, its type the event's name."""
    body = json.dumps({"time": event.time, **event.data})
    data = f"id: {event.number}\nevent: {event.data['type']}\ndata: {body}\n\n".encode()
    return Frame(event.number, data, event.data["type"] == "state" and event.data["state"] in FINISHED)


def frames_of(found: Sequence[JobEvent], after: int) -> list[Frame]:
    """Events that follow number `after` as they are sent; a reset first if some between are no longer kept."""
    gap = [reset_before(found[0])] if found and found[0].number > after + 1 else []
    return [frame_of(event) for event in (*gap, *found)]


@dataclass(eq=False)
class Channel:
    """What is known of one watched job."""

    number: int
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=_KEPT))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: int = 0

    def add(self, event: JobEvent) -> None:
        """Tell all listeners."""
        self.frames.extend(frames_of([event], self.number))
        self.number = event.number
        self.changed.set()
        self.changed = asyncio.Event()


class Hub:
    """The channels of one process, and the task that fills them."""

    def __init__(self, engine: Engine, poll_seconds: float) -> None:
        self._engine, self._poll_seconds = engine, poll_seconds
        self._channels: dict[str, Channel] = {}
        self._closed = False
        self._watched = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def listeners(self) -> int:
        """Streams that are open."""
        return sum(channel.listeners for channel in self._channels.values())

    def last(self, job: str) -> int:
        """Number of a job's latest event."""
        return last_number(self._engine, job)

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._poll(), name="events")

    async def close(self) -> None:
        """End every stream; listeners come back, to another service or to this one restarted."""
        self._closed = True
        for channel in self._channels.values():
            channel.changed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def listen(self, job: str, after: int) -> AsyncIterator[bytes]:
        """Frames of a job with numbers above `after`, until the job has ended or the hub closes."""
        last = await asyncio.to_thread(last_number, self._engine, job)
        channel = self._channels.setdefault(job, Channel(last))
        channel.listeners += 1
        after = min(after, channel.number)
        self._watched.set()
        try:
            yield HELLO
            while not self._closed:
                changed = channel.changed  # before looking: what comes meanwhile sets it
                frames = await self._frames(job, channel, after)
                for frame in frames:
                    yield frame.data
                    after = frame.number
                if frames and frames[-1].last:
                    return
                if not frames:
                    try:
                        await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
                    except TimeoutError:
                        yield HEARTBEAT
        finally:
            channel.listeners -= 1
            if not channel.listeners:
                self._channels.pop(job, None)

    async def _frames(self, job: str, channel: Channel, after: int) -> list[Frame]:
        """What follows `after`, from the channel or, for who is far behind, from the database."""
        first = channel.frames[0].number if channel.frames else channel.number + 1
        if after + 1 >= first:
            return [frame for frame in channel.frames if frame.number > after]
        if after >= channel.number:
            return []
        return frames_of(await asyncio.to_thread(read_since, self._engine, [(job, after)], _KEPT), after)

    async def _poll(self) -> None:
        while True:
            self._watched.clear()
            if not self._channels:
                await self._watched.wait()
            started = time.monotonic()
            try:
                wanted = [(job, channel.number) for job, channel in self._channels.items()]
                for event in await asyncio.to_thread(read_since, self._engine, wanted):
                    channel = self._channels.get(event.job)
                    if channel is not None and event.number > channel.number:
                        channel.add(event)
            except SQLAlchemyError as error:
                _log.error("the database does not answer", extra={"error": type(error).__name__})
            await asyncio.sleep(max(0.05, self._poll_seconds - (time.monotonic() - started)))
