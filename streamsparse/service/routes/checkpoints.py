"""Checkpoints: list, show, download."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from streamsparse.service.checkpoints import (
    FileView,
    OpenedFile,
    OpenObject,
    TarView,
    checkpoint_directory,
    file_names,
    open_file,
)
from streamsparse.service.context import Reader, Service, Services
from streamsparse.service.downloads import Download, respond
from streamsparse.service.problems import Refusal, not_found
from streamsparse.service.roots import NamedRun
from streamsparse.service.routes.names import CheckpointName, FileName, RunName, problems
from streamsparse.service.schemas.names import NAME_PATTERN
from streamsparse.service.schemas.runs import CheckpointFile, CheckpointList, CheckpointSummary, CheckpointView
from streamsparse.service.views import costs_view
from streamsparse.store import layout
from streamsparse.store.objects import stored_objects
from streamsparse.store.signing import object_sizes, signed_url
from streamsparse.write.description import CONFIG_FILE, Description

router = APIRouter(prefix="/api/v1/runs/{run}/checkpoints", tags=["checkpoints"])

SIGNED_SECONDS = 900
FILE_TYPE, ARCHIVE_TYPE = "application/octet-stream", "application/x-tar"


def _sent(media_type: str) -> dict[int | str, Any]:
    """What a download answers."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {
        200: {"content": content, "description": "All of it."},
        206: {"content": content, "description": "The range that was asked for."},
        304: {"description": "The client has it already."},
        307: {"description": "A signed URL of the object store, where ROOT is in a bucket."},
    }


@router.get("", summary="List checkpoints", responses=problems())
def list_checkpoints(run: RunName, service: Services, _: Reader) -> CheckpointList:
    """Of a run."""
    named = service.root.find(run)
    found = []
    for name in named.run.documents.names("checkpoints"):
        sizes = _sizes(named, name)
        if CONFIG_FILE in sizes:  # written last: the others are not whole
            found.append(CheckpointSummary(name=name, bytes=sum(sizes.values()), files=sorted(sizes)))
    return CheckpointList(run=run, checkpoints=found)


@router.get("/{name}", summary="Show a checkpoint", responses=problems(409))
def show_checkpoint(run: RunName, name: CheckpointName, service: Services, _: Reader) -> CheckpointView:
    """What it costs, what it keeps, how it was evaluated, and its files with their digests."""
    named = service.root.find(run)
    sizes = _sizes(named, name)
    content = named.run.documents.read(f"{layout.checkpoint_prefix(name)}/{CONFIG_FILE}")
    if CONFIG_FILE not in sizes or content is None:
        raise not_found("checkpoint", name)
    about = Description.from_bytes(content)
    config = about.config
    before, after = config.costs_before, config.costs_after
    told = config.statistics
    return CheckpointView(
        run=run,
        name=name,
        created=config.created,
        costs=None if after is None else costs_view(after),
        original_costs=None if before is None else costs_view(before),
        sparsity=None if before is None or after is None else 1 - after.parameters / before.parameters,
        budget=told.get("budget"),
        refit=told.get("refit"),
        kept={group: len(positions) for group, positions in config.kept.items()},
        original_sizes=dict(config.original_sizes),
        held_out_errors=told.get("held_out_errors", {}),
        evaluation=named.run.documents.read_json(layout.evaluation_key(name)),
        files=[
            CheckpointFile(name=file, bytes=size, sha256=_digest(service, named, name, file))
            for file, size in sorted(sizes.items())
        ],
        archive=_archive(service, named, name),
    )


@router.get("/{name}/files/{file}", summary="Download a file", response_class=Response,
            responses={**_sent(FILE_TYPE), **problems(416)})  # fmt: skip
def download_file(
    run: RunName, name: CheckpointName, file: FileName, request: Request, service: Services, _: Reader
) -> Response:
    """Resumable: Range, If-Range and a strong ETag, which is the SHA-256 of the file (Repr-Digest too)."""
    named = service.root.find(run)
    if named.run.directory is None:
        return _redirected(named, name, file)
    opened = open_file(checkpoint_directory(named.run.directory, name), file)
    try:
        digest = service.digests.of_file(opened)
    except BaseException:
        opened.close()
        raise
    download = Download(
        name=file, size=opened.size, sha256=digest, media_type=FILE_TYPE,
        open=partial(FileView, opened), close=opened.close,
    )  # fmt: skip
    return respond(request, download)


@router.get("/{name}/archive", summary="Download all files as a tar", response_class=Response,
            responses={**_sent(ARCHIVE_TYPE), **problems(409, 416)})  # fmt: skip
def download_archive(
    run: RunName, name: CheckpointName, request: Request, service: Services, _: Reader
) -> Response:
    """A tar that is the same byte for byte as long as the checkpoint is, so that it resumes like a file.

    Where ROOT is in a bucket it is put together on its way from there; the first request of a checkpoint reads it
    once more, for its digest.
    """
    named = service.root.find(run)
    with ExitStack() as stack:
        files = _opened(named, name, stack)
        digest = service.digests.of_tar(files)
        close = stack.pop_all().close
    view = TarView(files)
    download = Download(f"{run}-{name}.tar", view.size, digest, ARCHIVE_TYPE, lambda: view, close)
    return respond(request, download)


router.head("/{name}/files/{file}", include_in_schema=False)(download_file)
router.head("/{name}/archive", include_in_schema=False)(download_archive)


def _sizes(named: NamedRun, checkpoint: str) -> dict[str, int]:
    """Bytes of every file of a checkpoint; {} where there is none."""
    if named.run.directory is None:
        return object_sizes(named.run, layout.checkpoint_prefix(checkpoint))
    try:
        directory = checkpoint_directory(named.run.directory, checkpoint)
    except Refusal:
        return {}
    return {file: (directory / file).lstat().st_size for file in file_names(directory)}


def _opened(named: NamedRun, checkpoint: str, stack: ExitStack) -> list[OpenedFile]:
    """All files of a checkpoint, closed with the stack.

    Raises:
        Refusal: 404, there is none, or it is not whole.
    """
    files: list[OpenedFile] = []
    if named.run.directory is None:
        found = stored_objects(named.run, layout.checkpoint_prefix(checkpoint))
        if CONFIG_FILE not in [stored.name for stored in found]:  # written last
            raise not_found("checkpoint", checkpoint)
        files.extend(OpenObject(named.run, one) for one in found if re.fullmatch(NAME_PATTERN, one.name))
    else:
        directory = checkpoint_directory(named.run.directory, checkpoint)
        for name in file_names(directory):
            files.append(open_file(directory, name))
            stack.callback(files[-1].close)
    return files


def _archive(service: Service, named: NamedRun, checkpoint: str) -> CheckpointFile:
    """Name, size and digest of the tar; no digest of one in a bucket that nobody has asked for."""
    with ExitStack() as stack:
        files = _opened(named, checkpoint, stack)
        of_tar = service.digests.known_tar if named.run.directory is None else service.digests.of_tar
        size, sha256 = TarView(files).size, of_tar(files)
    return CheckpointFile(name=f"{named.name}-{checkpoint}.tar", bytes=size, sha256=sha256)


def _digest(service: Service, named: NamedRun, checkpoint: str, file: str) -> str | None:
    if named.run.directory is None:
        return None
    opened = open_file(checkpoint_directory(named.run.directory, checkpoint), file)
    try:
        return service.digests.of_file(opened)
    finally:
        opened.close()


def _redirected(named: NamedRun, checkpoint: str, file: str) -> Response:
    """To the object store itself, which serves ranges; the URL is good for minutes, for this object alone."""
    if file not in object_sizes(named.run, layout.checkpoint_prefix(checkpoint)):
        raise not_found("file", file)
    key = f"{layout.checkpoint_prefix(checkpoint)}/{file}"
    return RedirectResponse(signed_url(named.run, key, SIGNED_SECONDS), status_code=307)
