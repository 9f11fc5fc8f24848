"""From the library's error tree to HTTP: one table, one form of answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from streamsparse import errors
from streamsparse.service.schemas.problems import Problem

MEDIA_TYPE = "application/problem+json"

STATUS_OF: dict[type[errors.StreamsparseError], int] = {
    errors.RunNotFoundError: 404,
    errors.RunLockedError: 409,
    errors.SchemaVersionError: 409,
    errors.RunMismatchError: 409,
    errors.StageMissingError: 409,
    errors.CorruptDataError: 500,
    errors.RunError: 409,
    errors.CheckpointError: 409,
    errors.InputError: 422,
    errors.MemoryLimitError: 503,
    errors.StorageError: 503,
    errors.ClusterError: 503,
    errors.ResourceError: 503,
    errors.StreamsparseError: 500,
}
"""An error has the status of the first class of its own ancestry that is listed."""

TITLES = {
    401: ("Unauthorized", "A bearer token is needed."),
    404: ("NotFound", "There is nothing at this address."),
    405: ("MethodNotAllowed", "This address does not take this method."),
}


class Refusal(Exception):  # noqa: N818  an answer, not a failure
    """A request that HTTP itself refuses: not found, forbidden, too large, too many.

    Args:
        status: of the answer.
        error: name of the kind, such as "NotFound".
        title: one sentence.
        headers: of the answer.
        details: expected, got, where, remedy.
    """

    def __init__(
        self,
        status: int,
        error: str,
        title: str,
        *,
        headers: Mapping[str, str] | None = None,
        **details: str | None,
    ) -> None:
        super().__init__(title)
        self.status, self.headers = status, dict(headers or {})
        self.problem = Problem(
            type=f"urn:streamsparse:http:{error}", title=title, status=status, error=error, **details
        )


def refusal_of(error: errors.StreamsparseError, status: int, root: Path | None) -> Refusal:
    """An error of the library where its usual status does not fit: what is wrong is the client's, not ours."""
    refusal = Refusal(status, type(error).__name__, error.summary)
    refusal.problem = without_paths(problem_of(error, status), root)
    return refusal


def not_found(what: str, name: str, remedy: str | None = None) -> Refusal:
    """404 for something that a name does not lead to."""
    return Refusal(404, "NotFound", f"There is no {what} of this name.", got=name[:200], remedy=remedy)


def status_of(error: errors.StreamsparseError) -> int:
    """The HTTP status of an error of the library."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def problem_of(error: errors.StreamsparseError, status: int | None = None) -> Problem:
    """The library's error as a problem."""
    name = type(error).__name__
    return Problem(
        type=f"urn:streamsparse:error:{name}",
        title=error.summary,
        status=status,
        error=name,
        expected=error.expected,
        got=error.got,
        where=error.where,
        remedy=error.remedy,
    )


def answer(problem: Problem, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """The response for a problem. ASCII, so that no text of a client can make it unencodable."""
    content = json.dumps(problem.model_dump(exclude_none=True)).encode("ascii")
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


async def on_refusal(_: Request, error: Exception) -> Response:
    """Handler of `Refusal`."""
    assert isinstance(error, Refusal)
    return answer(error.problem, error.status, error.headers)


def without_paths(problem: Problem, root: Path | None) -> Problem:
    """The problem with ROOT in the place of its path: where it lies is not for clients."""
    fields = ("title", "expected", "got", "where", "remedy")
    texts = {field: getattr(problem, field) for field in fields}
    return problem.model_copy(update={field: text and without_path(text, root) for field, text in texts.items()})


def without_path(text: str, root: Path | None) -> str:
    """The text with ROOT in the place of its path."""
    if root is not None:
        names = {str(root), str(root.absolute()), str(root.resolve())} - {".", "/"}
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, "ROOT")
    return text


async def on_library_error(request: Request, error: Exception) -> Response:
    """Handler of `StreamsparseError`."""
    assert isinstance(error, errors.StreamsparseError)
    status = status_of(error)
    headers = {"Retry-After": "5"} if status == 503 else {}
    root = request.app.state.service.root.directory
    return answer(without_paths(problem_of(error, status), root), status, headers)


async def on_http_exception(_: Request, error: Exception) -> Response:
    """Handler of what the router refuses: unknown addresses and methods, bodies that do not parse."""
    assert isinstance(error, HTTPException)
    name, title = TITLES.get(error.status_code, ("Refused", str(error.detail)))
    problem = Problem(type=f"urn:streamsparse:http:{name}", title=title, status=error.status_code, error=name)
    return answer(problem, error.status_code, error.headers)


async def on_invalid(_: Request, error: Exception) -> Response:
    """Handler of bodies and parameters that do not fit the schema; what was sent is not repeated at length."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0]) if error.errors() else {}
    problem = Problem(
        type="urn:streamsparse:http:Invalid",
        title="The request does not fit the schema.",
        status=422,
        error="Invalid",
        expected=str(first.get("msg", ""))[:300] or None,
        got=repr(first.get("input"))[:100] if "input" in first else None,
        where=".".join(str(part)[:100] for part in first.get("loc", ()))[:300] or None,
        remedy="/openapi.json describes every request",
    )
    return answer(problem, 422)


async def on_unexpected(_: Request, error: Exception) -> Response:
    """Handler of everything else: a defect of the service. What it was is in the log, not in the answer."""
    problem = Problem(
        type="urn:streamsparse:http:Defect", title="The service failed.", status=500, error=type(error).__name__,
        remedy="the service's log says more",
    )  # fmt: skip
    return answer(problem, 500)
