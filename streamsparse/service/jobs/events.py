"""What jobs report, kept: numbered from 1 up per job, in the order in which they were committed.

{"type": "state", "state": "running", "attempt": 1}
{"type": "state", "state": "failed", "error": {...}}       also reason, result, where there are any
{"type": "progress", "stage": "solve", "done": 3, "total": 8, "unit": "groups", ...}
{"type": "notice", "stage": "solve", "message": "..."}
{"type": "reused", "stage": "accumulate", "message": "..."}
{"type": "finished", "stage": "solve", "seconds": 1.2}
{"type": "reset", "first": 731, "message": "..."}          never stored: sent in the place of what is no longer kept

The oldest are deleted, see `settings.Retention`; the latest of a job never is, so that numbers go on from it, and
what is kept has no gaps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, or_, select

from streamsparse.service.jobs.database import events, jobs


@dataclass(frozen=True)
class JobEvent:
    """One event; `number` counts from 1 per job, `time` is seconds since 1970."""

    job: str
    number: int
    time: float
    data: dict[str, Any]


def append(connection: Connection, job: str, data: dict[str, Any]) -> int:
    """Add an event; returns its number. The job's row must be locked by this transaction, so that numbers follow
    commits.
    """
    last = select(func.coalesce(func.max(events.c.number), 0)).where(events.c.job == job)
    number = int(connection.execute(last).scalar_one()) + 1
    connection.execute(events.insert().values(job=job, number=number, time=time.time(), data=data))
    return number


def trim(connection: Connection, job: str, last: int, keep: int) -> None:
    """Delete what lies more than `keep` events before a job's last, and at least that one stays."""
    connection.execute(delete(events).where(events.c.job == job, events.c.number <= last - max(keep, 1)))


def trim_ended(connection: Connection, ended_before: float) -> int:
    """Delete all but the last event of the jobs that ended before a time; returns how many events."""
    later = events.alias("later")
    ended = select(jobs.c.id).where(jobs.c.finished < ended_before)
    is_last = ~select(later.c.number).where(later.c.job == events.c.job, later.c.number > events.c.number).exists()
    return connection.execute(delete(events).where(events.c.job.in_(ended), ~is_last)).rowcount


def read_since(engine: Engine, after: Iterable[tuple[str, int]], limit: int = 5000) -> list[JobEvent]:
    """Events of some jobs with numbers above those given, in order; at most `limit` of them."""
    wanted = list(after)
    if not wanted:
        return []
    which = or_(*(and_(events.c.job == job, events.c.number > number) for job, number in wanted))
    query = select(events).where(which).order_by(events.c.job, events.c.number).limit(limit)
    with engine.connect() as connection:
        return [JobEvent(**row) for row in connection.execute(query).mappings()]


def reset_before(event: JobEvent) -> JobEvent:
    """What is sent to a listener whose next event is no longer kept, before the first that is."""
    message = f"events up to number {event.number - 1} are no longer kept; the job itself says how it stands"
    data = {"type": "reset", "first": event.number, "message": message}
    return JobEvent(event.job, event.number - 1, event.time, data)


def last_number(engine: Engine, job: str) -> int:
    """Of the job's latest event; 0 if there is none."""
    query = select(func.coalesce(func.max(events.c.number), 0)).where(events.c.job == job)
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())
