"""Runs: list, show, register, upload, delete."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import anyio
from fastapi import APIRouter, Header, Request, Response
from starlette.requests import ClientDisconnect

from streamsparse.errors import InputError
from streamsparse.service import archives, bodies
from streamsparse.service.context import Administrator, Reader, Service, Services, Submitter
from streamsparse.service.jobs.queue import has_active
from streamsparse.service.placing import place
from streamsparse.service.problems import Refusal, not_found, refusal_of
from streamsparse.service.roots import NamedRun, require_known_model
from streamsparse.service.routes.names import RunName, problems
from streamsparse.service.schemas.runs import DeletionToken, Registration, RunList, RunSummary, RunView
from streamsparse.service.tickets import DELETION_SECONDS
from streamsparse.service.views import report_key, run_summary, run_view
from streamsparse.store import Run

router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""A report may run its own few lines, in an origin of its own: it cannot reach the API, nor anything else."""
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD = {
    "requestBody": {"required": True, "content": dict.fromkeys(bodies.ARCHIVES, _BINARY)},
}


@router.get("", summary="List runs", responses=problems())
def list_runs(service: Services, _: Reader) -> RunList:
    """All runs of ROOT and all that were registered; one that cannot be read says why."""
    active = service.queue.counts("run")
    return RunList(runs=list(_summaries(service, active)))


def _summaries(service: Service, active: dict[str, int]) -> Iterator[RunSummary]:
    for name in service.root.names():
        try:
            yield run_summary(service, name, active.get(name, 0))
        except Refusal:  # deleted meanwhile
            continue


@router.post("", status_code=201, summary="Register a captured run", responses=problems(409, 413, 415))
def register_run(asked: Registration, service: Services, _: Submitter, response: Response) -> RunView:
    """Know a run by a name that lies deeper in ROOT, or under a prefix that the server was started with.

    No other URL is ever opened: no file://, no other bucket, no other endpoint.
    """
    named = service.root.register(asked.id, asked.url)
    response.headers["Location"] = f"/api/v1/runs/{asked.id}"
    return run_view(service, named)


@router.get("/{run}", summary="Show a run", responses=problems(409))
def show_run(run: RunName, service: Services, _: Reader) -> RunView:
    """Manifest, stages, sizes, groups of channels, and what the last verification found."""
    return run_view(service, service.root.find(run))


@router.put(
    "/{run}/archive", status_code=201, summary="Upload a statistics archive", openapi_extra=_UPLOAD,
    responses=problems(409, 413, 415),
)  # fmt: skip
async def upload_archive(
    run: RunName, request: Request, service: Services, _: Submitter, response: Response
) -> RunView:
    """A run of statistics from another site, as a tar (plain or gzip) or zip: manifest.json,
    model/weights.safetensors and statistics/, nothing else.

    It is checked in full (names, sizes, digests, shapes) before it becomes a run.
    """
    await anyio.to_thread.run_sync(service.root.require_free, run)
    folder = (await anyio.to_thread.run_sync(service.root.scratch)) / uuid4().hex
    archive = folder.with_suffix(".upload")
    try:
        await _receive(request, archive, service.settings.limits.upload_bytes)
        named = await anyio.to_thread.run_sync(_unpack, service, run, archive, folder)
    finally:
        for left in (archive, folder):
            await anyio.to_thread.run_sync(archives.discard, left)
    response.headers["Location"] = f"/api/v1/runs/{run}"
    return await anyio.to_thread.run_sync(run_view, service, named)


async def _receive(request: Request, archive: Path, most: int) -> None:
    """The body into a file, no more of it than is allowed."""
    received = 0
    try:
        async with await anyio.open_file(archive, "xb") as file:
            async for piece in request.stream():
                received += len(piece)
                if received > most:
                    raise bodies.too_large(most)
                await file.write(piece)
    except ClientDisconnect as error:
        raise Refusal(400, "BadRequest", "The upload broke off.", where="the body") from error


def _unpack(service: Service, name: str, archive: Path, unpacked: Path) -> NamedRun:
    archives.unpack(archive, unpacked, service.settings.limits)
    try:
        archives.check(unpacked)
        require_known_model(service.settings, Run.at(unpacked))
    except InputError as error:
        raise refusal_of(error, 422, unpacked) from error
    place(service.root, name, unpacked)
    return service.root.find(name)


@router.post("/{run}/deletion", summary="First step to delete a run", responses=problems(409, 415))
def begin_deletion(run: RunName, service: Services, _: Administrator) -> DeletionToken:
    """Says what would be deleted, and gives a token for the second step that is good for minutes."""
    named = service.root.find(run)
    _require_idle(service, named)
    token, expires = service.signer.sign("deletion", named.url, DELETION_SECONDS)
    consequence = (
        "The service forgets the run; its files stay where they are."
        if named.registered
        else "The run is deleted with all that it holds: activations, statistics, solution, checkpoints."
    )
    return DeletionToken(run=run, token=token, expires=expires, consequence=consequence)


@router.delete("/{run}", status_code=204, summary="Delete a run", responses=problems(409))
def delete_run(
    run: RunName,
    service: Services,
    _: Administrator,
    deletion_token: Annotated[
        str, Header(alias="Deletion-Token", max_length=200, description="Of the first step, POST .../deletion.")
    ],
) -> None:
    """The second step."""
    named = service.root.find(run)
    if not service.signer.holds("deletion", named.url, deletion_token):
        raise Refusal(
            403, "BadDeletionToken", "This is not a token for the deletion of this run, or no longer.",
            where="Deletion-Token", remedy=f"POST /api/v1/runs/{run}/deletion gives one",
        )  # fmt: skip
    _require_idle(service, named)
    service.root.remove(named)


@router.get(
    "/{run}/report", summary="The run's report", response_class=Response,
    responses={200: {"content": {"text/html": {}}}, **problems()},
)  # fmt: skip
def show_report(run: RunName, service: Services, _: Reader) -> Response:
    """The HTML that a job of kind `report` made, in a sandbox of its own."""
    opened = service.root.find(run).run
    key = report_key(opened)
    content = None if key is None else opened.documents.read(key)
    if content is None:
        raise not_found("report", html.escape(run), "submit a job of kind 'report'")
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


def _require_idle(service: Service, named: NamedRun) -> None:
    with service.engine.connect() as connection:
        busy = has_active(connection, named.url)
    if busy:
        raise Refusal(
            409, "RunBusy", "Jobs of this run have not ended.", expected="a run without active jobs",
            remedy="cancel them, or wait",
        )  # fmt: skip
