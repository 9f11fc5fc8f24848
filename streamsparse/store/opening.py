"""From a path or URL to a Zarr store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore

from streamsparse.errors import UsageError


def local_path(url: str) -> Path | None:
    """The directory that a path or `file://` URL names; None for other schemes."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(url) if "://" not in url else None


def open_store(url: str) -> Store:
    """A store at a path, a `file://` URL or `memory://`.

    Nothing is created until something is written.

    Raises:
        UsageError: a scheme that is not supported.
    """
    if url == "memory://":
        return MemoryStore()
    path = local_path(url)
    if path is None:
        raise UsageError(
            "This kind of URL cannot hold a run.",
            expected="a directory or a file:// URL",
            got=url,
            remedy="give a path on a disk that every process of the run can see",
        )
    return _Directory(path)


class _Directory(LocalStore):
    """A LocalStore that makes its directory with the first object, not with the first look."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._is_open = True  # opening is what makes the directory
