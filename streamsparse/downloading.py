"""Download a checkpoint's files: resumed after a break, checked against their digests, in place as one step.

.NAME.download/FILE.part, FILE.etag     on the way; kept when a download breaks off
NAME/                                   all files, each with the digest that the service named
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from streamsparse.errors import CheckpointError, StorageError

TRIES = 6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PIECE_BYTES = 2**20

OnBytes = Callable[[int, int], None]


def download_checkpoint(
    http: httpx.Client, about: Mapping[str, Any], directory: Path, *, resume: bool, on_bytes: OnBytes
) -> Path:
    """All files of a checkpoint into a new directory.

    Args:
        http: a client of the service.
        about: what the service says of the checkpoint.
        directory: must not exist.
        resume: take up what an earlier download left.
        on_bytes: hears of bytes that are there, and of all.

    Raises:
        CheckpointError: the directory exists, a file name is not plain, or a digest does not agree.
        StorageError: the disk or the connection failed.
    """
    target = directory.absolute()
    if target.exists() or target.is_symlink():
        raise CheckpointError(
            "The directory for the checkpoint exists already.", expected="a new directory", got="an existing path",
            where=target, remedy="choose another directory",
        )  # fmt: skip
    files = {str(file["name"]): file for file in about["files"]}
    for name in files:
        if not _NAME.fullmatch(name):
            raise CheckpointError("The service names a file that is not plain.", got=ascii(name))
    partial = target.with_name(f".{target.name}.download")
    base = f"/api/v1/runs/{about['run']}/checkpoints/{about['name']}/files"
    total, done = sum(int(file["bytes"]) for file in files.values()), 0
    try:
        if not resume and partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            _download(http, f"{base}/{name}", partial / name, file["sha256"], _counting(on_bytes, done, total))
            done += int(file["bytes"])
        _check_weights(partial)
        for leftover in partial.glob("*.etag"):
            leftover.unlink()
        partial.rename(target)
    except OSError as error:
        raise StorageError(
            "The checkpoint could not be stored.", expected="a directory with room and permission", got=error,
            where=target, remedy="make room, and call again: it resumes",
        ) from error  # fmt: skip
    return target


def _counting(on_bytes: OnBytes, before: int, total: int) -> Callable[[int], None]:
    return lambda present: on_bytes(before + present, total)


def _download(
    http: httpx.Client, path: str, target: Path, sha256: str | None, on_bytes: Callable[[int], None]
) -> None:
    """One file, tried again from where it broke off."""
    if target.exists():  # by an earlier call, which checked it
        if sha256 is not None and _digest(target) == sha256:
            on_bytes(target.stat().st_size)
            return
        target.unlink()
    part = target.with_name(f"{target.name}.part")
    for attempt in range(TRIES):
        try:
            promised = _fetch(http, path, part, target.with_name(f"{target.name}.etag"), on_bytes) or sha256
            break
        except httpx.TransportError as error:
            if attempt + 1 == TRIES:
                raise StorageError(
                    "The connection broke off again and again.", got=f"{type(error).__name__}: {error}", where=path,
                    remedy="call again: it resumes",
                ) from error  # fmt: skip
            time.sleep(0.1 * 2**attempt)
    found = _digest(part)
    if promised is not None and found != promised:
        part.unlink()
        raise CheckpointError(
            "A file is not what the service sent.", expected=f"SHA-256 {promised}", got=found, where=target.name,
            remedy="call again",
        )  # fmt: skip
    part.rename(target)


def _fetch(http: httpx.Client, path: str, part: Path, etag: Path, on_bytes: Callable[[int], None]) -> str | None:
    """The rest of a file, or all of it if it has changed; returns the SHA-256 that the answer promises, if any."""
    present = part.stat().st_size if part.exists() and etag.exists() else 0
    headers = {"Range": f"bytes={present}-", "If-Range": etag.read_text()} if present else {}
    with http.stream("GET", path, headers=headers, follow_redirects=True) as answer:
        if answer.status_code not in (200, 206, 416):
            answer.read()
            raise CheckpointError(
                "The service does not send the file.", got=f"status {answer.status_code}", where=path
            )
        if answer.status_code == 416:  # it was whole before
            return None
        etag.write_text(answer.headers.get("etag", ""))
        with part.open("ab" if answer.status_code == 206 else "wb") as stream:
            for piece in answer.iter_raw(_PIECE_BYTES):
                stream.write(piece)
                on_bytes(stream.tell())
            stream.flush()
            os.fsync(stream.fileno())
        return _promised(answer.headers.get("repr-digest", ""))


def _promised(header: str) -> str | None:
    """`sha-256=:BASE64:` -> hexadecimal."""
    match = re.search(r"sha-256=:([A-Za-z0-9+/=]{44}):", header)
    return base64.b64decode(match[1]).hex() if match else None


def _check_weights(directory: Path) -> None:
    """The checkpoint names the digest of its weights itself, wherever they came from."""
    try:
        expected = json.loads((directory / "config.json").read_bytes())["digests"]["file"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("The checkpoint is not whole.", expected="config.json", got=repr(error)) from error
    found = _digest(directory / "model.safetensors")
    if found != expected:
        raise CheckpointError(
            "The weights are not the checkpoint's.", expected=f"SHA-256 {expected}", got=found,
            where="model.safetensors",
        )  # fmt: skip


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
