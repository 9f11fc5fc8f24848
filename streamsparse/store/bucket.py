"""A prefix of an S3 bucket as a Zarr store, through obstore.

Credentials, region and endpoint come from the usual environment variables (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION, AWS_ENDPOINT_URL); containers and
machines of AWS that have a role need none of them. They never travel with a pickled store: every process reads
its own environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import S3Store

SCHEME = "s3"
_METADATA = "zarr.json"
_OLD_METADATA = (".zarray", ".zattrs", ".zgroup")
"""Of Zarr v2; Zarr asks for them too, and prefers those of v3."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


@dataclass(frozen=True)
class Patience:
    """How long requests are tried.

    Attributes:
        retry_seconds: after which a request that keeps failing for want of an answer, or with a 5xx, is given up.
        connect_seconds: for one connection; read_seconds: without a byte; request_seconds: for one whole request.
        longest_pause_seconds: between two tries; the pauses grow from 0.1 s.
    """

    retry_seconds: float = 20.0
    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    request_seconds: float = 300.0
    longest_pause_seconds: float = 3.0


PATIENCE = Patience()
IMPATIENCE = Patience(retry_seconds=1.0, connect_seconds=2.0, read_seconds=10.0, request_seconds=10.0)
"""For the heartbeat of a lease, which comes again soon."""


@dataclass(frozen=True)
class BucketAddress:
    """What an `s3://bucket/prefix` URL names; the prefix has no slash at its ends."""

    bucket: str
    prefix: str


@dataclass(frozen=True)
class ListedObject:
    """An object in a listing.

    Attributes:
        key: below the store's prefix.
        modified: when it was last written, by the server's clock.
        version: changes with every write.
    """

    key: str
    modified: datetime
    version: str


def parse_address(url: str) -> BucketAddress:
    """
    Raises:
        UsageError: no bucket, or parts that an object's key cannot have.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    segments = prefix.split("/") if prefix else []
    if (
        parts.query
        or parts.fragment
        or not _BUCKET.fullmatch(parts.netloc)
        or any(segment in ("", ".", "..") for segment in segments)
    ):
        raise UsageError(
            "This URL does not name a place in a bucket.",
            expected="s3://BUCKET/PREFIX, without user, port, '?', '#' or empty parts",
            got=url,
            remedy="name the server in AWS_ENDPOINT_URL and the keys in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        )
    return BucketAddress(parts.netloc, prefix)


class Bucket(ObjectStore["S3Store"]):
    """The store below one prefix. A guard is called before anything is written, and raises to forbid it.

    Zarr reads the metadata of an array each time it is opened, and that of all groups above it each time one is
    created. They never change but through this store, so that they are remembered once they were seen: every
    request costs a round trip.
    """

    def __init__(self, store: S3Store, *, read_only: bool = False, url: str = "") -> None:
        super().__init__(store, read_only=read_only)
        self.url = url
        self.guards: list[Callable[[], None]] = []
        self._metadata: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return open_bucket, (self.url, self.read_only)

    def with_read_only(self, read_only: bool = False) -> Bucket:
        copy = type(self)(self.store, read_only=read_only, url=self.url)
        copy.guards, copy._metadata = self.guards, self._metadata
        return copy

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        folder, _, name = key.rpartition("/")
        if name in _OLD_METADATA and f"{folder}/{_METADATA}" in self._metadata:
            return None
        if name != _METADATA or byte_range is not None:
            return await super().get(key, prototype, byte_range)
        if key in self._metadata:
            return prototype.buffer.from_bytes(self._metadata[key])
        found = await super().get(key, prototype)
        if found is not None:
            self._metadata[key] = found.to_bytes()
        return found

    async def set(self, key: str, value: Buffer, byte_range: Any = None) -> None:
        self._check_guards()
        self._metadata.pop(key, None)
        await super().set(key, value)
        if key.endswith(f"/{_METADATA}"):
            self._metadata[key] = value.to_bytes()

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Some servers ignore the condition of a conditional write, so look first."""
        self._check_guards()
        if key not in self._metadata and not await self.exists(key):
            await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        self._check_guards()
        self._metadata.pop(key, None)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        import obstore

        self._check_guards()
        self._check_writable()
        for key in [
            key for key in self._metadata if f"/{key}".startswith(f"/{prefix.strip('/')}/".replace("//", "/"))
        ]:
            del self._metadata[key]
        found = await obstore.list(self.store, prefix.rstrip("/") or None).collect_async()
        if found:
            await obstore.delete_async(self.store, [item["path"] for item in found])

    def listing(self, prefix: str) -> list[ListedObject]:
        """The objects below `prefix`, as one look at the server."""
        import obstore

        found = obstore.list(self.store, prefix).collect()
        return [ListedObject(item["path"], item["last_modified"], item["e_tag"] or "") for item in found]

    @cached_property
    def impatient(self) -> S3Store:
        """The same place, for requests that had better fail soon."""
        return _connect(parse_address(self.url), IMPATIENCE)

    def _check_guards(self) -> None:
        for guard in self.guards:
            guard()


def open_bucket(url: str, read_only: bool = False) -> Bucket:
    """The store at `s3://bucket/prefix`; nothing is sent.

    Raises:
        UsageError: the URL or the environment does not name a place.
    """
    return Bucket(_connect(parse_address(url), PATIENCE), read_only=read_only, url=url)


def _connect(address: BucketAddress, patience: Patience) -> S3Store:
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise UsageError(
            "Runs in a bucket need the package obstore.", got=str(error), remedy="pip install obstore"
        ) from error
    endpoint = endpoint_url()
    return S3Store(
        address.bucket,
        prefix=address.prefix or None,
        disable_bulk_delete=True,  # several servers answer the bulk request in ways that do not parse
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=patience.connect_seconds),
            "read_timeout": timedelta(seconds=patience.read_seconds),
            "timeout": timedelta(seconds=patience.request_seconds),
        },
        retry_config={
            "max_retries": 1000,  # the time is the limit
            "retry_timeout": timedelta(seconds=patience.retry_seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=patience.longest_pause_seconds),
                "base": 2,
            },
        },
    )


def endpoint_url(names: Iterable[str] = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")) -> str | None:
    """The server that the environment names; None for AWS itself.

    Raises:
        UsageError: it is not an http(s) URL.
    """
    name, value = next(((name, os.environ[name]) for name in names if os.environ.get(name)), ("", None))
    if value is not None and not re.fullmatch(r"https?://[^\s/]+/?\S*", value):
        raise UsageError(
            "The address of the object store does not parse.",
            expected="http://HOST:PORT or https://HOST",
            got=value,
            where=name,
            remedy=f"set {name}, or unset it for AWS",
        )
    return value
