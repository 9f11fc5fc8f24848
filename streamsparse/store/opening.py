"""From a path or URL to a Zarr store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore

from streamsparse.errors import UsageError
from streamsparse.store.bucket import SCHEME, open_bucket


def local_path(url: str) -> Path | None:
    """The directory that a path or `file://` URL names; None for other schemes."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(url) if "://" not in url else None


def open_store(url: str) -> Store:
    """A store at a path, a `file://` URL, `s3://bucket/prefix` or `memory://`.

    Nothing is created until something is written.

    Raises:
        UsageError: a scheme that is not supported, or a URL that does not parse.
    """
    if url == "memory://":
        return MemoryStore()
    if url.startswith(f"{SCHEME}://"):
        return open_bucket(url)
    path = local_path(url)
    if path is None or url.startswith(f"{SCHEME}:"):  # a pathlib.Path loses one of the slashes
        raise UsageError(
            "This kind of URL cannot hold a run.",
            expected="a directory, a file:// URL or s3://BUCKET/PREFIX (as text, not as a pathlib.Path)",
            got=url,
            remedy="give a path on a disk that every process of the run can see, or a bucket of an S3 server",
        )
    return _Directory(path)


class _Directory(LocalStore):
    """A LocalStore that makes its directory with the first object, not with the first look."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._is_open = True  # opening is what makes the directory
