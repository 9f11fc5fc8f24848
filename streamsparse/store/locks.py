"""One writer per run: advisory locks that the operating system drops when a process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamsparse.errors import RunLockedError
from streamsparse.store.failures import storage_error


@contextmanager
def locked(
    directory: Path | None, name: str = "run", *, shared: bool = False, wait: bool = False
) -> Iterator[None]:
    """Hold the lock `name` of a run directory.

    Args:
        directory: of the run; None (no directory) locks nothing.
        name: of the lock file.
        shared: several holders at once, but no exclusive one.
        wait: for the other holder, instead of giving up; for locks that are held for a moment only.

    Raises:
        RunLockedError: another holder is in the way.
        StorageError: the directory cannot be written, or its file system has no locks.
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
        _acquire(handle, path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, operation: int) -> None:
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError as error:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        raise RunLockedError(
            "Another process is using this run.",
            expected="no other writer",
            got=f"locked by process {holder}",
            where=path,
            remedy="wait for it to finish, stop it, or choose another RUN",
        ) from error
    except OSError as error:
        raise storage_error(error, str(path)) from error
    with suppress(OSError):  # the number only helps the message above; a full disk must not stop a reader
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
