"""A checked directory becomes a run of ROOT: by one rename on a disk, manifest last in a bucket.

A run in a bucket is one whose manifest is there, so that an upload that is cut off leaves nothing that is listed or
read; what it did leave is cleared by the next upload of this name. Meanwhile the lock under which captures begin
keeps away whoever else would begin a run of this name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from streamsparse.errors import StorageError, StreamsparseError
from streamsparse.service.roots import Root, name_taken
from streamsparse.store import Run, layout

_AT_ONCE = 4
"""Objects on their way at the same time, each whole in memory: an array of statistics has one chunk per fold."""
_UPLOADED = ("model", "statistics")
_LEFT_BEHIND = {*layout.BEGUN_IN_BUCKET, *_UPLOADED}
"""All that an upload that was cut off, or a capture that was killed before its manifest, can leave."""


def place(root: Root, name: str, unpacked: Path) -> None:
    """Make a run of ROOT of a directory that was unpacked and checked.

    Args:
        root: where to.
        name: a checked name.
        unpacked: moved away on a disk, read for a bucket.

    Raises:
        Refusal: 409, something has this name.
        RunLockedError: another upload, or a capture, begins a run of this name.
        StorageError: the disk or the bucket failed; there is no run of this name.
    """
    root.require_free(name)
    if root.directory is None:
        _put(root, name, unpacked)
        return
    try:
        unpacked.rename(root.place(name))
    except OSError as error:
        raise StorageError("The run could not be put into ROOT.", got=error.strerror, where=name) from error


def _put(root: Root, name: str, unpacked: Path) -> None:
    run = Run.at(root.place(name))
    keys = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file())
    with run.lock("begin"):
        root.require_free(name)  # by whoever held the lock before
        run.finish_clearing()
        if not _LEFT_BEHIND.issuperset(run.documents.names("")):
            raise name_taken(name)
        with _nothing_left(run):
            _clear(run)
            _write(run, unpacked, [key for key in keys if key != layout.MANIFEST])
            run.documents.write(layout.MANIFEST, (unpacked / layout.MANIFEST).read_bytes())


@contextmanager
def _nothing_left(run: Run) -> Iterator[None]:
    """Clear what was written if not all of it is; if that fails too, there is no manifest yet."""
    try:
        yield
    except BaseException:
        with suppress(StreamsparseError):
            _clear(run)
        raise


def _clear(run: Run) -> None:
    for prefix in _UPLOADED:
        run.documents.delete(prefix)


def _write(run: Run, unpacked: Path, keys: Sequence[str]) -> None:
    def write(key: str) -> None:
        run.documents.write(key, (unpacked / key).read_bytes())

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        written = [pool.submit(write, key) for key in keys]
        try:
            for one in written:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
