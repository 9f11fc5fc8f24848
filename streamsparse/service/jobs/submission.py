"""Submitting a job, once: a client that repeats a request with the same key gets the same job."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from streamsparse.service.jobs.database import idempotency, jobs
from streamsparse.service.jobs.queue import ACTIVE, Job, Queue, insert_job
from streamsparse.service.problems import Refusal

KEY_SECONDS = 7 * 24 * 3600.0
"""How long a key is remembered."""


@dataclass(frozen=True)
class Submission:
    """What a client asks for.

    Attributes:
        run, run_url: by name, and where it lies.
        kind, parameters: validated.
        who: name of the token.
        key: the client's Idempotency-Key, or None.
    """

    run: str
    run_url: str
    kind: str
    parameters: dict[str, Any]
    who: str
    key: str | None = None

    @property
    def digest(self) -> str:
        """Of what is asked, whoever asks."""
        asked = json.dumps([self.run_url, self.kind, self.parameters], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()


def submit(queue: Queue, submission: Submission, most: int) -> tuple[Job, bool]:
    """The job, and whether it is new.

    Args:
        most: jobs that may be active at the same time.

    Raises:
        Refusal: 422 if the key stood for another request, 429 if too many jobs wait.
    """
    try:
        with queue.engine.begin() as connection:
            connection.execute(delete(idempotency).where(idempotency.c.created < time.time() - KEY_SECONDS))
            key = None if submission.key is None else f"{submission.who} {submission.key}"
            if key is not None:
                query = select(idempotency).where(idempotency.c.key == key)
                known = connection.execute(query).mappings().first()
                if known is not None:
                    _check_same(known["request"], submission)
                    return connection.execute(select(jobs).where(jobs.c.id == known["job"])).mappings().one(), False
            active = connection.execute(select(func.count()).where(jobs.c.state.in_(ACTIVE))).scalar_one()
            if active >= most:
                title = "Too many jobs are waiting."
                raise Refusal(429, "TooManyJobs", title, headers={"Retry-After": "60"}, got=str(active))
            values = {name: getattr(submission, name) for name in ("run", "run_url", "kind", "parameters")}
            job = insert_job(connection, {**values, "submitted_by": submission.who})
            if key is not None:
                row = {"key": key, "request": submission.digest, "job": job["id"], "created": time.time()}
                connection.execute(idempotency.insert().values(row))
            return job, True
    except IntegrityError:  # the same key at the same moment, through another service
        return submit(queue, submission, most)


def _check_same(known: str, submission: Submission) -> None:
    if known != submission.digest:
        raise Refusal(
            422, "KeyReused", "This Idempotency-Key stood for another request.", where="Idempotency-Key",
            expected="the same run, kind and parameters", remedy="use a new key for a new request",
        )  # fmt: skip
