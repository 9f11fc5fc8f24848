"""The queue: jobs are submitted, claimed by one worker at a time, and finished, tried again or cancelled.

    queued ──claim──> running ──> succeeded | failed | cancelled
      ▲                 │ ▲
      └─ lease expired ─┘ └─ claim, once its time has come ─ waiting  (a lost cluster, a locked run, a crash)

Jobs of one run are done in the order in which they were submitted: one that waits holds up those behind it, for a
solution has no sense before its statistics. A claim is one UPDATE ... RETURNING; that no two jobs of a run are
running is kept by a unique index, so that it holds for any number of services on one database. Times are seconds
since 1970 by the clocks of the services, which should agree within a few seconds.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, func, select, update
from sqlalchemy.exc import IntegrityError

from streamsparse.service.jobs.database import jobs
from streamsparse.service.jobs.events import append, trim, trim_ended
from streamsparse.service.settings import Retention, Timing
from streamsparse.store import processes

ACTIVE = ("queued", "running", "waiting")
FINISHED = ("succeeded", "failed", "cancelled")
LOG_CHARACTERS = 64 * 1024
_RETENTION = Retention()

Job = RowMapping
"""A row of the table `jobs`."""


class LeaseLost(Exception):  # noqa: N818  not a failure of the job
    """The job is not this worker's any more: its lease expired, and another may have it."""


class Queue:
    """Access to the table of jobs; every method is one transaction."""

    def __init__(self, engine: Engine, timing: Timing, retention: Retention = _RETENTION) -> None:
        self.engine, self.timing, self.retention = engine, timing, retention

    def find(self, job: str) -> Job | None:
        """The job with this id."""
        with self.engine.connect() as connection:
            return _row(connection, job)

    def page(
        self, *, run: str | None = None, state: str | None = None, before: int | None = None, limit: int = 50
    ) -> list[Job]:
        """Jobs, the latest first, that were submitted before number `before`."""
        query = select(jobs).order_by(jobs.c.number.desc()).limit(limit)
        if run is not None:
            query = query.where(jobs.c.run == run)
        if state is not None:
            query = query.where(jobs.c.state == state)
        if before is not None:
            query = query.where(jobs.c.number < before)
        with self.engine.connect() as connection:
            return list(connection.execute(query).mappings())

    def last_succeeded(self, run_url: str, kind: str) -> Job | None:
        """The latest job of a kind that went well."""
        query = select(jobs).where(jobs.c.run_url == run_url, jobs.c.kind == kind, jobs.c.state == "succeeded")
        with self.engine.connect() as connection:
            return connection.execute(query.order_by(jobs.c.number.desc()).limit(1)).mappings().first()

    def counts(self, column: str = "state") -> dict[str, int]:
        """How many active jobs there are by state, or by run."""
        by = jobs.c[column]
        query = select(by, func.count()).where(jobs.c.state.in_(ACTIVE)).group_by(by)
        with self.engine.connect() as connection:
            return {str(row[0]): int(row[1]) for row in connection.execute(query)}

    def claim(self, owner: str) -> Job | None:
        """Take the oldest job whose time has come and that is its run's next; None if there is none."""
        now = time.time()
        busy = select(jobs.c.run_url).where(jobs.c.state == "running")
        earlier = jobs.alias("earlier")
        overtaken = select(earlier.c.number).where(
            earlier.c.run_url == jobs.c.run_url, earlier.c.number < jobs.c.number, earlier.c.state.in_(ACTIVE)
        )
        first = (
            select(jobs.c.number)
            .where(jobs.c.state.in_(("queued", "waiting")), jobs.c.not_before <= now, jobs.c.run_url.not_in(busy))
            .where(~overtaken.exists())
            .order_by(jobs.c.number)
            .limit(1)
            .scalar_subquery()
        )
        values = {
            "state": "running", "owner": owner, "lease_expires": now + self.timing.lease_seconds, "reason": None,
            "attempts": jobs.c.attempts + 1, "started": func.coalesce(jobs.c.started, now), "progress": [],
        }  # fmt: skip
        query = update(jobs).where(jobs.c.number == first, jobs.c.state.in_(("queued", "waiting"))).values(values)
        try:
            with self.engine.begin() as connection:
                row = connection.execute(query.returning(*jobs.c)).mappings().first()
                if row is not None:
                    append(connection, row["id"], {"type": "state", "state": "running", "attempt": row["attempts"]})
                return row
        except IntegrityError:  # another service began a job of this run at the same moment
            return None

    def heartbeat(
        self, job: str, owner: str, *, progress: list[dict[str, Any]], log: str, events: list[dict[str, Any]]
    ) -> bool:
        """Renew the lease and store what the job reported; returns whether it is to be cancelled.

        Raises:
            LeaseLost: the job is not this owner's.
        """
        with self.engine.begin() as connection:
            row = self._owned(connection, job, owner)
            values = {
                "lease_expires": time.time() + self.timing.lease_seconds, "progress": progress,
                "log": log[-LOG_CHARACTERS:],
            }  # fmt: skip
            connection.execute(update(jobs).where(jobs.c.id == job).values(values))
            self._append_all(connection, job, events)
            return bool(row["cancel_requested"])

    def finish(self, job: str, owner: str, state: str, **values: Any) -> None:
        """End a job, or make it wait (`not_before` and `reason` then say until when and for what).

        Raises:
            LeaseLost: the job is not this owner's.
        """
        with self.engine.begin() as connection:
            self._owned(connection, job, owner)
            if state in FINISHED:
                self._end(connection, job, state, **values)
            else:
                _change(connection, job, state, **values)

    def _end(self, connection: Connection, job: str, state: str, **values: Any) -> None:
        """A state that a job ends in; its oldest events go."""
        last = _change(connection, job, state, finished=time.time(), **values)
        trim(connection, job, last, self.retention.ended_events)

    def _append_all(self, connection: Connection, job: str, events: list[dict[str, Any]]) -> None:
        """Add what a job reported; from time to time the oldest goes."""
        most = self.retention.running_events
        for event in events:
            number = append(connection, job, event)
            if number % max(most // 20, 1) == 0:
                trim(connection, job, number, most)

    def forget(self) -> int:
        """Delete events of jobs that ended long ago; returns how many."""
        with self.engine.begin() as connection:
            return trim_ended(connection, time.time() - self.retention.ended_days * 86400)

    def cancel(self, job: str) -> Job | None:
        """Cancel a job: at once unless it is running, then as soon as its worker hears of it."""
        with self.engine.begin() as connection:
            row = _row(connection, job, lock=True)
            if row is None or row["state"] in FINISHED:
                return row
            if row["state"] == "running":
                query = update(jobs).where(jobs.c.id == job).values(cancel_requested=True, reason="being cancelled")
                connection.execute(query)
                append(connection, job, {"type": "notice", "stage": "job", "message": "cancellation was requested"})
            else:
                self._end(connection, job, "cancelled", reason=None)
            return _row(connection, job)

    def retry(self, job: str) -> Job | None:
        """Queue a failed or cancelled job again, or make a waiting one's time come; None if there is none."""
        with self.engine.begin() as connection:
            row = _row(connection, job, lock=True)
            if row is not None and row["state"] in ("failed", "cancelled", "waiting"):
                _change(
                    connection, job, "queued", not_before=0.0, crashes=0, cancel_requested=False, error=None,
                    finished=None, reason=None,
                )  # fmt: skip
            return _row(connection, job)

    def recover(self) -> int:
        """Queue the jobs again whose worker is dead: one of this machine that ended, or whose lease has expired.

        Returns:
            how many.
        """
        query = select(jobs.c.id, jobs.c.owner, jobs.c.lease_expires).where(jobs.c.state == "running")
        with self.engine.connect() as connection:
            found = [row for row in connection.execute(query).mappings() if _is_dead(row)]
        return sum(self._recover(row["id"]) for row in found)

    def _recover(self, job: str) -> bool:
        with self.engine.begin() as connection:
            row = _row(connection, job, lock=True)
            if row is None or row["state"] != "running" or not _is_dead(row):
                return False
            if row["cancel_requested"]:
                self._end(connection, job, "cancelled", reason=None)
            else:
                reason = "its service stopped; the run resumes from what was committed"
                _change(connection, job, "queued", not_before=0.0, reason=reason)
            return True

    @staticmethod
    def _owned(connection: Connection, job: str, owner: str) -> RowMapping:
        row = _row(connection, job, lock=True)
        if row is None or row["owner"] != owner or row["state"] != "running":
            raise LeaseLost(job)
        return row


def insert_job(connection: Connection, values: dict[str, Any]) -> RowMapping:
    """A new queued job; values for its run, run_url, kind, parameters and submitted_by."""
    job = secrets.token_hex(8)
    connection.execute(jobs.insert().values(id=job, state="queued", created=time.time(), progress=[], **values))
    append(connection, job, {"type": "state", "state": "queued"})
    row = _row(connection, job)
    assert row is not None
    return row


def has_active(connection: Connection, run_url: str) -> bool:
    """Whether a job of this run is queued, running or waiting."""
    query = select(jobs.c.id).where(jobs.c.run_url == run_url, jobs.c.state.in_(ACTIVE)).limit(1)
    return connection.execute(query).first() is not None


def _is_dead(row: RowMapping) -> bool:
    """Whether nobody works on a running job any more."""
    try:
        alive = processes.is_alive(json.loads(row["owner"]))
    except ValueError:
        alive = None
    return alive is False or row["lease_expires"] < time.time()


def _change(connection: Connection, job: str, state: str, **values: Any) -> int:
    """A new state, told by an event, whose number it returns."""
    free = {"owner": None, "lease_expires": None}
    connection.execute(update(jobs).where(jobs.c.id == job).values(state=state, **free, **values))
    told = {name: values[name] for name in ("reason", "error", "result") if values.get(name) is not None}
    return append(connection, job, {"type": "state", "state": state, **told})


def _row(connection: Connection, job: str, *, lock: bool = False) -> RowMapping | None:
    query = select(jobs).where(jobs.c.id == job)
    return connection.execute(query.with_for_update() if lock else query).mappings().first()


__all__ = ["ACTIVE", "FINISHED", "Job", "LeaseLost", "Queue", "has_active", "insert_job"]
