"""One writer per run: advisory locks that the operating system drops when a process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamsparse.errors import RunLockedError
from streamsparse.store.failures import storage_error


@contextmanager
def locked(directory: Path | None, name: str = "run", *, shared: bool = False) -> Iterator[None]:
    """Hold the lock `name` of a run directory.

    Args:
        directory: of the run; None (no directory) locks nothing.
        name: of the lock file.
        shared: several holders at once, but no exclusive one.

    Raises:
        RunLockedError: another holder is in the way; nothing waits.
    """
    if directory is None:
        yield
        return
    path = directory / f".{name}.lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(error, str(path)) from error
    try:
        _acquire(handle, path, shared)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, shared: bool) -> None:
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        raise RunLockedError(
            "Another process is using this run.",
            expected="no other writer",
            got=f"locked by process {holder}",
            where=path,
            remedy="wait for it to finish, stop it, or choose another RUN",
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
