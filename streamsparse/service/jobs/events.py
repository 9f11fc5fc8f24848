"""What jobs report, kept: numbered from 1 up per job, in the order in which they were committed.

{"type": "state", "state": "running", "attempt": 1}
{"type": "state", "state": "failed", "error": {...}}       also reason, result, where there are any
{"type": "progress", "stage": "solve", "done": 3, "total": 8, "unit": "groups", ...}
{"type": "notice", "stage": "solve", "message": "..."}
{"type": "reused", "stage": "accumulate", "message": "..."}
{"type": "finished", "stage": "solve", "seconds": 1.2}
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, or_, select

from streamsparse.service.jobs.database import events


@dataclass(frozen=True)
class JobEvent:
    """One event; `number` counts from 1 per job, `time` is seconds since 1970."""

    job: str
    number: int
    time: float
    data: dict[str, Any]


def append(connection: Connection, job: str, data: dict[str, Any]) -> None:
    """Add an event. The job's row must be locked by this transaction, so that numbers follow commits."""
    last = select(func.coalesce(func.max(events.c.number), 0)).where(events.c.job == job)
    number = connection.execute(last).scalar_one() + 1
    connection.execute(events.insert().values(job=job, number=number, time=time.time(), data=data))


def read_since(engine: Engine, after: Iterable[tuple[str, int]], limit: int = 5000) -> list[JobEvent]:
    """Events of some jobs with numbers above those given, in order; at most `limit` of them."""
    wanted = list(after)
    if not wanted:
        return []
    which = or_(*(and_(events.c.job == job, events.c.number > number) for job, number in wanted))
    query = select(events).where(which).order_by(events.c.job, events.c.number).limit(limit)
    with engine.connect() as connection:
        return [JobEvent(**row) for row in connection.execute(query).mappings()]


def last_number(engine: Engine, job: str) -> int:
    """Of the job's latest event; 0 if there is none."""
    query = select(func.coalesce(func.max(events.c.number), 0)).where(events.c.job == job)
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())
