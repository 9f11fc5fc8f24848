"""Objects of a bucket for those who hand them on: listed with their versions, read from any position.

A stored object is one version of it: reading fails once another has taken its place, so that what is put together
from several reads is never a mixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streamsparse.errors import StorageError, UsageError
from streamsparse.store.bucket import Bucket
from streamsparse.store.failures import storage_errors
from streamsparse.store.run import Run

_ANSWER_BYTES = 2**20


@dataclass(frozen=True)
class StoredObject:
    """An object as it is in the bucket now.

    Attributes:
        key: below the run.
        size: bytes.
        version: the server's ETag, which changes with the content; modified: seconds since 1970, by its clock.
    """

    key: str
    size: int
    version: str
    modified: float

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]


def stored_objects(run: Run, prefix: str) -> list[StoredObject]:
    """The objects directly below a prefix, sorted by name.

    Raises:
        UsageError: the run is not in a bucket.
        StorageError: it cannot be listed.
    """
    import obstore

    with storage_errors(prefix):
        found = obstore.list_with_delimiter(bucket_of(run).store, prefix)["objects"]
    objects = [
        StoredObject(item["path"], item["size"], item["e_tag"] or "", item["last_modified"].timestamp())
        for item in found
    ]
    return sorted(objects, key=lambda one: one.name)


def bucket_of(run: Run) -> Bucket:
    """The store of a run in a bucket.

    Raises:
        UsageError: it is elsewhere.
    """
    if not isinstance(run.store, Bucket):
        raise UsageError("This needs a run in a bucket.", expected="s3://BUCKET/PREFIX", got=run.url)
    return run.store


class ObjectReader:
    """Reads one version of an object; reading on where the last read ended costs no new request."""

    def __init__(self, run: Run, stored: StoredObject) -> None:
        self._bucket, self.stored = bucket_of(run), stored
        self._answer: Iterator[bytes] | None = None
        self._position, self._rest = 0, memoryview(b"")

    def read_at(self, size: int, position: int) -> bytes:
        """At most `size` bytes from a position on, at least one unless it is at the end.

        Raises:
            StorageError: the server failed, or the object is another by now.
        """
        if position >= self.stored.size:
            return b""
        with storage_errors(self.stored.key):
            if self._answer is None or position != self._position:
                self._answer, self._rest, self._position = self._ask(position), memoryview(b""), position
            while not self._rest:
                self._rest = memoryview(next(self._answer, b""))
                if not self._rest:
                    raise StorageError("An object ended early.", expected=f"{self.stored.size} bytes",
                                       got=position, where=self.stored.key)  # fmt: skip
        piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
        self._position += len(piece)
        return piece

    def close(self) -> None:
        """Give back the connection."""
        self._answer, self._rest = None, memoryview(b"")

    def _ask(self, position: int) -> Iterator[bytes]:
        import obstore

        same = {"if_match": self.stored.version} if self.stored.version else {}
        options = {"range": {"offset": position}, **same}
        answer = obstore.get(self._bucket.store, self.stored.key, options=options)  # type: ignore[arg-type]
        return (bytes(piece) for piece in answer.stream(min_chunk_size=_ANSWER_BYTES))
