"""Small whole objects in a store: JSON documents and files of bytes, each written atomically."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from zarr.abc.store import Store, SupportsGetSync
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from streamsparse.errors import CorruptDataError
from streamsparse.store.failures import storage_errors

AT_ONCE = 32
"""Requests on their way at the same time when many documents are read."""


_DISTURBED = (errno.ENOENT, errno.ENOTEMPTY)
"""What deleting a local directory meets when another process deletes or writes in it."""


class Documents:
    """Whole objects by key. A local write goes through a temporary file and a rename; on an object store an
    object appears whole or not at all.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prototype = default_buffer_prototype()

    def read(self, key: str) -> bytes | None:
        """The bytes at `key`, or None."""
        with storage_errors(key):
            if isinstance(self._store, SupportsGetSync):  # a local file is read sooner than the event loop wakes
                value = self._store.get_sync(key, prototype=self._prototype)
            else:
                value = sync(self._store.get(key, self._prototype))
        return None if value is None else value.to_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Replace the object at `key` as one atomic step."""
        with storage_errors(key):
            sync(self._store.set(key, self._prototype.buffer.from_bytes(data)))

    def write_once(self, key: str, data: bytes) -> bytes:
        """Write unless the key exists; returns what is there afterwards, whoever wrote it."""
        with storage_errors(key):
            sync(self._store.set_if_not_exists(key, self._prototype.buffer.from_bytes(data)))
        return self.read(key) or data

    def read_json(self, key: str) -> dict[str, Any] | None:
        """The JSON object at `key`, or None.

        Raises:
            CorruptDataError: the bytes are not a JSON object.
        """
        return _parsed(key, self.read(key))

    def read_many_json(self, keys: Sequence[str]) -> list[dict[str, Any] | None]:
        """The JSON objects at `keys` in their order, None where there is none; AT_ONCE requests at a time.

        Raises:
            CorruptDataError: the bytes of one are not a JSON object.
        """
        found = sync(self._read_many(keys))
        return [_parsed(key, data) for key, data in zip(keys, found, strict=True)]

    async def _read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        places = asyncio.Semaphore(AT_ONCE)

        async def read(key: str) -> bytes | None:
            async with places:
                with storage_errors(key):
                    value = await self._store.get(key, self._prototype)
                return None if value is None else value.to_bytes()

        return await asyncio.gather(*(read(key) for key in keys))

    def write_json(self, key: str, value: dict[str, Any]) -> None:
        """Replace the JSON object at `key`."""
        self.write(key, json.dumps(value, indent=1).encode())

    def exists(self, key: str) -> bool:
        with storage_errors(key):
            return sync(self._store.exists(key))

    def names(self, prefix: str) -> list[str]:
        """Sorted names directly below `prefix`."""
        with storage_errors(prefix):
            return sorted(sync(_collect(self._store.list_dir, prefix)))

    def keys(self, prefix: str) -> list[str]:
        """Sorted keys of all objects below `prefix`; others may delete there at the same time."""
        with storage_errors(prefix):
            while True:
                try:
                    return sorted(sync(_collect(self._store.list_prefix, prefix)))
                except FileNotFoundError as error:  # a directory, after its name was read
                    if error.errno is None:  # or the bucket
                        raise

    def delete(self, prefix: str) -> None:
        """Remove everything below `prefix`; others may delete there, or write, at the same time."""
        with storage_errors(prefix):
            while True:
                try:
                    return sync(self._store.delete_dir(prefix))
                except OSError as error:
                    if error.errno not in _DISTURBED:
                        raise

    def delete_key(self, key: str) -> None:
        """Remove one object, if it is there."""
        with storage_errors(key):
            sync(self._store.delete(key))

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Remove objects, those that are there; many at once."""
        sync(self._delete_many(keys))

    async def _delete_many(self, keys: Sequence[str]) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def delete(key: str) -> None:
            async with places:
                with storage_errors(key):
                    await self._store.delete(key)

        await asyncio.gather(*(delete(key) for key in keys))

    def size_bytes(self, prefix: str) -> int:
        """Bytes stored below `prefix`."""
        with storage_errors(prefix):
            return sync(self._store.getsize_prefix(prefix)) if self.names(prefix) else 0


async def _collect(list_below: Callable[[str], AsyncIterator[str]], prefix: str) -> list[str]:
    return [name async for name in list_below(prefix)]  # called in zarr's event loop, as obstore requires


def _parsed(key: str, data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _not_json(key, str(error)) from error
    if not isinstance(value, dict):
        raise _not_json(key, type(value).__name__)
    return value


def _not_json(key: str, got: str) -> CorruptDataError:
    return CorruptDataError(
        "A document of the run is not readable.",
        expected="a JSON object",
        got=got,
        where=key,
        remedy="restore the file from a copy, or delete it and run the stage again",
    )
