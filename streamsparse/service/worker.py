"""Works on the queue: one thread per job that may run at the same time, each with the job's own process.

claim ──> child process ──> messages ──> heartbeat: events, progress and lease in one transaction
              │
              └─ exit: result → succeeded, error → failed, cluster or store lost, run locked, killed → waiting
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from streamsparse import errors
from streamsparse.service.child import Child
from streamsparse.service.jobs.queue import Job, LeaseLost, Queue
from streamsparse.service.problems import Refusal, problem_of, without_path, without_paths
from streamsparse.service.roots import Root, require_known_model
from streamsparse.service.settings import Settings
from streamsparse.store import processes

PASSING = ("ClusterError", "StorageError", "RunLockedError")
"""Errors that pass by themselves: the job waits and is tried again."""
BUILDS_MODEL = ("write", "checkpoint", "evaluate", "sensitivity")
FORGET_SECONDS = 3600.0
"""Between two deletions of old events."""

_log = logging.getLogger(__name__)


@dataclass
class Attempt:
    """What is known of a job while it runs."""

    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    cancelled: bool = False

    def hear(self, message: dict[str, Any]) -> None:
        """Take one message of the job's process."""
        kind = message.get("type")
        if kind == "result":
            self.result = message["result"]
        elif kind == "error":
            self.error = message["error"]
        else:
            if kind == "progress":
                self.progress[message["stage"]] = {k: v for k, v in message.items() if k != "type"}
            self.events.append(message)


class Worker:
    """The threads that work on jobs, and the one that queues the jobs of dead services again."""

    def __init__(
        self, settings: Settings, queue: Queue, root: Root, on_end: Callable[[str, str], None] = lambda *_: None
    ) -> None:
        """
        Args:
            on_end: hears of the kind and the state of every job that ends or is made to wait.
        """
        self._settings, self._queue, self._root, self._on_end = settings, queue, root, on_end
        self._timing = settings.timing
        self._stopping = threading.Event()
        slots = [threading.Thread(target=self._work, name=f"jobs-{n}") for n in range(settings.jobs)]
        self._threads = [*slots, threading.Thread(target=self._watch, name="leases")]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the jobs that run here, queue them again, and end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        forgotten = -math.inf
        while not self._stopping.is_set():
            try:
                if time.monotonic() - forgotten > FORGET_SECONDS:
                    forgotten = time.monotonic()
                    self._queue.forget()
                found = self._queue.recover()
                if found:
                    _log.warning("jobs of a dead service are queued again", extra={"jobs": found})
            except SQLAlchemyError as error:
                _log.error("the database does not answer", extra={"error": type(error).__name__})
            self._stopping.wait(max(self._timing.poll_seconds, self._timing.lease_seconds / 10))

    def _work(self) -> None:
        owner = json.dumps({**processes.identity(), "thread": uuid4().hex})
        spare = Child() if self._settings.warm else None
        while not self._stopping.is_set():
            try:
                job = self._queue.claim(owner)
                if job is not None:
                    child, spare = spare, None
                    self._run(job, owner, child)
                    spare = Child() if self._settings.warm and not self._stopping.is_set() else None
                    continue
            except LeaseLost as lost:
                _log.warning("another service took over a job", extra={"job": str(lost)})
            except SQLAlchemyError as error:
                _log.error("the database does not answer", extra={"error": type(error).__name__})
            except Exception:  # noqa: BLE001  the thread goes on; the job's lease expires, and it is tried again
                _log.exception("a job could not be run")
            self._stopping.wait(self._timing.poll_seconds)
        if spare is not None:
            spare.stop(0.0)
            spare.close()

    def _run(self, job: Job, owner: str, child: Child | None) -> None:
        """Do one job in this process, or in a new one if it is None or has died."""
        _log.info("job begins", extra={"job": job["id"], "kind": job["kind"], "run": job["run"]})
        try:
            named = self._root.find(job["run"])
            if job["kind"] in BUILDS_MODEL:
                require_known_model(self._settings, named.run)
        except (Refusal, errors.StreamsparseError) as error:
            self._end_before_start(job, owner, error)
            if child is not None:
                child.close()
            return
        if child is not None and child.ended() is not None:
            child.close()
            child = None
        child = child or Child()
        child.begin(self._about(job, named.run.url))
        attempt, killed = Attempt(), True
        try:
            status = self._follow(job, owner, child, attempt)
            killed = False
        finally:
            if killed:  # the lease is lost, or this service failed: nothing may write to the run any more
                child.stop(0.0)
            child.close()
        self._end(job, owner, attempt, status, self._hide(child.log()))

    def _hide(self, text: str) -> str:
        return without_path(text, self._root.directory)

    def _about(self, job: Job, url: str) -> dict[str, Any]:
        settings = self._settings
        return {
            "kind": job["kind"], "run": url, "name": job["run"], "parameters": job["parameters"],
            "data": dict(settings.data), "data_root": settings.data_root, "scheduler": settings.scheduler,
            "cluster_seconds": settings.timing.cluster_seconds, "threads": settings.threads,
        }  # fmt: skip

    def _follow(self, job: Job, owner: str, child: Child, attempt: Attempt) -> int | None:
        """Listen until the process ends; None if it was stopped because the service stops."""
        beaten = time.monotonic()
        while True:
            status = child.ended()
            for message in child.messages(0.0 if status is not None else 0.1):
                if "message" in message:
                    message["message"] = self._hide(str(message["message"]))
                attempt.hear(message)
            if attempt.events or status is not None or time.monotonic() - beaten > self._timing.heartbeat_seconds:
                attempt.cancelled |= self._beat(job, owner, child, attempt, beaten)
                beaten = time.monotonic()
            if status is not None:
                return status
            if attempt.cancelled or self._stopping.is_set():
                child.stop(self._timing.terminate_seconds)
                return child.ended() if attempt.cancelled else None

    def _beat(self, job: Job, owner: str, child: Child, attempt: Attempt, beaten: float) -> bool:
        """Renew the lease, trying for as long as it holds."""
        while True:
            try:
                cancelled = self._queue.heartbeat(
                    job["id"], owner, progress=list(attempt.progress.values()), log=self._hide(child.log()),
                    events=attempt.events,
                )  # fmt: skip
                attempt.events = []
                return cancelled
            except SQLAlchemyError:
                if time.monotonic() - beaten > self._timing.lease_seconds:
                    raise LeaseLost(job["id"]) from None
                time.sleep(self._timing.poll_seconds)

    def _end(self, job: Job, owner: str, attempt: Attempt, status: int | None, log: str) -> None:
        values: dict[str, Any] = {"log": log[-64 * 1024 :], "progress": list(attempt.progress.values())}
        if attempt.result is not None and status == 0:
            self._finish(job, owner, "succeeded", result=attempt.result, reason=None, **values)
        elif attempt.cancelled:
            self._finish(job, owner, "cancelled", reason=None, **values)
        elif status is None:
            self._finish(job, owner, "queued", reason="its service was stopped", not_before=0.0, **values)
        elif attempt.error is not None:
            self._end_in_error(job, owner, attempt.error, values)
        else:
            self._end_in_crash(job, owner, status, values)

    def _end_in_error(self, job: Job, owner: str, error: dict[str, Any], values: dict[str, Any]) -> None:
        found = without_paths(problem_of(rebuilt(error)), self._root.directory)
        problem = found.model_dump(exclude_none=True)
        if error["error"] in PASSING:
            reason = f"{problem['title']} {problem.get('got', '')}".strip()
            self._finish(job, owner, "waiting", reason=reason, not_before=self._next_try(job), **values)
        else:
            self._finish(job, owner, "failed", error=problem, reason=None, **values)

    def _end_in_crash(self, job: Job, owner: str, status: int, values: dict[str, Any]) -> None:
        crashes = job["crashes"] + 1
        what = f"signal {-status}" if status < 0 else f"exit status {status}"
        if crashes >= self._timing.crashes:
            error = errors.ResourceError(
                "The job's process died again and again.", expected="a process that ends by itself",
                got=f"{what}, {crashes} times", remedy="see the job's log; it may need more memory",
            )  # fmt: skip
            problem = problem_of(error).model_dump(exclude_none=True)
            self._finish(job, owner, "failed", error=problem, reason=None, crashes=crashes, **values)
            return
        reason = f"its process died ({what}); the run resumes from what was committed"
        next_try = self._next_try(job)
        self._finish(job, owner, "waiting", reason=reason, crashes=crashes, not_before=next_try, **values)

    def _end_before_start(self, job: Job, owner: str, error: Refusal | errors.StreamsparseError) -> None:
        problem = error.problem if isinstance(error, Refusal) else problem_of(error)
        problem = without_paths(problem, self._root.directory)
        if problem.error in PASSING:
            self._finish(job, owner, "waiting", reason=problem.title, not_before=self._next_try(job))
        else:
            self._finish(job, owner, "failed", error=problem.model_dump(exclude_none=True), reason=None)

    def _finish(self, job: Job, owner: str, state: str, **values: Any) -> None:
        self._queue.finish(job["id"], owner, state, **values)
        _log.info("job ends", extra={"job": job["id"], "kind": job["kind"], "state": state})
        self._on_end(job["kind"], state)

    def _next_try(self, job: Job) -> float:
        pause = self._timing.first_retry_seconds * float(2 ** min(job["attempts"] - 1, 20))
        return time.time() + min(pause, self._timing.longest_retry_seconds)


def rebuilt(error: dict[str, Any]) -> errors.StreamsparseError:
    """The library's error that a process reported as JSON."""
    kind = getattr(errors, str(error.get("error")), errors.StreamsparseError)
    details = {name: error.get(name) for name in ("expected", "got", "where", "remedy")}
    return kind(error.get("summary", "The job failed."), **details)
