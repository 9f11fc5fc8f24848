"""A client of the HTTP service, for scripts and notebooks.

    client = Client("http://127.0.0.1:8765")
    job = client.submit("lenet", "checkpoint", budget="params=0.2", name="fifth")
    client.wait(job["id"])
    client.download("lenet", "fifth", "pruned/")

Answers are the JSON objects of the API, as /openapi.json describes them. Errors of the service are raised as the
library's own, with what was expected, what was got, and what to do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx

from streamsparse import errors
from streamsparse.downloading import download_checkpoint

TRIES = 6
FINISHED = ("succeeded", "failed", "cancelled")

Json = dict[str, Any]


class Client:
    """A connection to a service.

    Args:
        url: of the service, such as http://127.0.0.1:8765.
        token: if it asks for one.
        timeout_seconds: of one request.

    Raises:
        errors.UsageError: the URL is none.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise errors.UsageError("This is no URL of a service.", expected="http://HOST:PORT", got=url)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back its connections."""
        self._http.close()

    def runs(self) -> list[Json]:
        """All runs."""
        return list(self._json("GET", "/api/v1/runs")["runs"])

    def run(self, run: str) -> Json:
        """What a run holds."""
        return self._json("GET", f"/api/v1/runs/{run}")

    def front(self, run: str, **options: Any) -> Json:
        """The network's Pareto front; options: quantity, points, round_to, min_channels, leave, curves."""
        return self._json("GET", f"/api/v1/runs/{run}/front", params=options)

    def plan(self, run: str, budget: str | None = None, **options: Any) -> Json:
        """What a budget would give; options: channels, round_to, min_channels, keep, drop, leave, positions."""
        return self._json("POST", f"/api/v1/runs/{run}/plan", json={"budget": budget, **options})

    def submit(self, run: str, kind: str, *, key: str | None = None, **parameters: Any) -> Json:
        """Queue a job; repeated after a broken connection it is still one job.

        Args:
            run: name.
            kind: accumulate, fronts, solve, write, checkpoint, report, evaluate, sensitivity or verify.
            key: the Idempotency-Key; None for a new one.
            parameters: of the kind.
        """
        headers = {"Idempotency-Key": key or uuid4().hex}
        body = {"kind": kind, "parameters": parameters}
        return self._json("POST", f"/api/v1/runs/{run}/jobs", json=body, headers=headers)

    def job(self, job: str) -> Json:
        """A job."""
        return self._json("GET", f"/api/v1/jobs/{job}")

    def jobs(self, **options: Any) -> list[Json]:
        """The latest jobs; options: run, state, limit."""
        return list(self._json("GET", "/api/v1/jobs", params=options)["jobs"])

    def cancel(self, job: str) -> Json:
        """Cancel a job."""
        return self._json("POST", f"/api/v1/jobs/{job}/cancel")

    def retry(self, job: str) -> Json:
        """Try a job again that failed, was cancelled, or waits."""
        return self._json("POST", f"/api/v1/jobs/{job}/retry")

    def events(self, job: str, after: int = 0) -> Iterator[Json]:
        """Events of a job as they happen, each with its `number`, until it has ended.

        A connection that breaks is made again, and goes on after the last event: none is lost or repeated. Where
        old events are no longer kept, one of type "reset" stands for them; its `first` is the number of the next.

        Raises:
            errors.StorageError: the service cannot be reached any more.
        """
        failures = 0
        while True:
            headers = {"Last-Event-ID": str(after)}
            try:
                timeout = httpx.Timeout(self._http.timeout.connect, read=60.0)
                path = f"/api/v1/jobs/{job}/events"
                with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                    if answer.status_code == 204:
                        return
                    if answer.is_error:
                        answer.read()
                        raise failure_of(answer)
                    for event in parsed_events(answer.iter_lines()):
                        after, failures = event["number"], 0
                        yield event
            except httpx.TransportError as error:
                failures = _count_failure(failures, error)

    def wait(self, job: str, on_event: Callable[[Json], None] = lambda event: None) -> Json:
        """The job once it has succeeded.

        Args:
            on_event: hears of every event.

        Raises:
            errors.StreamsparseError: the error that the job failed with, or that it was cancelled.
        """
        for event in self.events(job):
            on_event(event)
        found = self.job(job)
        if found["state"] == "failed":
            raise error_of(found["error"])
        if found["state"] == "cancelled":
            raise errors.ResourceError("The job was cancelled.", where=job, remedy="retry it, or submit it again")
        return found

    def checkpoint(self, run: str, checkpoint: str) -> Json:
        """What a checkpoint costs and keeps, and its files."""
        return self._json("GET", f"/api/v1/runs/{run}/checkpoints/{checkpoint}")

    def download(
        self,
        run: str,
        checkpoint: str,
        directory: str | Path,
        *,
        resume: bool = True,
        on_bytes: Callable[[int, int], None] = lambda done, total: None,
    ) -> Path:
        """A checkpoint into a new directory, whole and with every digest checked, or not at all.

        Args:
            resume: go on with what an interrupted download of the same files left.
            on_bytes: hears of bytes that are there, and of all.

        Raises:
            errors.CheckpointError: the directory exists, or what arrived is not what was sent.
            errors.StorageError: the disk or the connection failed; called again it resumes.
        """
        about = self.checkpoint(run, checkpoint)
        return download_checkpoint(self._http, about, Path(directory), resume=resume, on_bytes=on_bytes)

    def _json(self, method: str, path: str, **request: Any) -> Json:
        failures = 0
        repeatable = method == "GET" or "Idempotency-Key" in request.get("headers", {})
        while True:
            try:
                answer = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                failures = _count_failure(failures if repeatable else TRIES, error)
                continue
            if answer.is_error:
                raise failure_of(answer)
            return dict(answer.json()) if answer.content else {}


def failure_of(answer: httpx.Response) -> errors.StreamsparseError:
    """The error that an answer stands for."""
    try:
        return error_of(answer.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        return errors.ResourceError("The service failed.", got=f"status {answer.status_code}")


def error_of(problem: Json) -> errors.StreamsparseError:
    """A problem as the library's error; what HTTP itself refuses is a UsageError, from 500 on a ResourceError."""
    status = problem.get("status") or 422
    other = errors.ResourceError if status >= 500 or status == 429 else errors.UsageError
    kind = getattr(errors, problem["error"], other)
    if not (isinstance(kind, type) and issubclass(kind, errors.StreamsparseError)):
        kind = other
    details = {name: problem.get(name) for name in ("expected", "got", "where", "remedy")}
    return kind(problem["title"], **details)


def parsed_events(lines: Iterator[str]) -> Iterator[Json]:
    """Server-sent events: their data, with the id as `number`."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields and "id" in fields:
            yield {"number": int(fields["id"]), **json.loads(fields["data"])}
        fields = {}


def _count_failure(failures: int, error: Exception) -> int:
    """One more failure, after a pause.

    Raises:
        errors.StorageError: that was the last.
    """
    if failures + 1 >= TRIES:
        raise errors.StorageError(
            "The service cannot be reached.", got=f"{type(error).__name__}: {error}",
            remedy="check the address, and that the service runs",
        ) from error  # fmt: skip
    time.sleep(0.1 * 2**failures)
    return failures + 1
