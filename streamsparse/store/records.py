"""Records: named float or integer arrays and a JSON description that commits them.

    KEY/GENERATION/NAME     the arrays of one writing
    KEY/record.json         names the generation that counts; replaced as one step

So a record is the one before or the one after, whoever is killed when, and a writer that was given up for lost (a
worker behind a broken network) can at worst put back an older whole record, never mix two.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import StorePath

from streamsparse.errors import CorruptDataError, StorageError
from streamsparse.store import layout
from streamsparse.store.at_once import at_once
from streamsparse.store.codecs import compressors
from streamsparse.store.documents import Documents
from streamsparse.store.failures import storage_errors

CHUNK_BYTES = 64 * 2**20
_ATTEMPTS = 20
"""At reading a record that is replaced each time before all of it is read."""
_GENERATION = re.compile("[0-9a-f]{16}")
_REMEDY = "restore the files from a copy, or delete the stage's output and run the stage again"


@dataclass(frozen=True, eq=False)
class Record:
    """What was committed under one key."""

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Draft:
    """A record that is being written, part by part, by any number of processes; `commit` makes it count.

    Attributes:
        key: of the record.
        generation: 16 hexadecimal digits; drafts of the same generation are the same draft.
    """

    store: Store
    key: str
    generation: str

    def create(self, name: str, shape: Sequence[int], dtype: Any, chunks: Sequence[int] | None = None) -> None:
        """Create an array, whose chunks are at most `CHUNK_BYTES` unless given; nothing if it is there."""
        key = f"{self.key}/{self.generation}/{name}"
        with storage_errors(key):
            try:
                zarr.open_array(self.store, path=key, mode="r+")
            except FileNotFoundError:
                chunks = chunks or chunks_of(tuple(shape), np.dtype(dtype).itemsize)
                zarr.create_array(
                    self.store, name=key, shape=tuple(shape), chunks=tuple(chunks), dtype=dtype,
                    compressors=compressors("none"),
                )  # fmt: skip

    def add(self, name: str, values: np.ndarray) -> None:
        """Create an array that is not there yet, and write it whole."""
        key = f"{self.key}/{self.generation}/{name}"
        with storage_errors(key):
            zarr.create_array(
                self.store, name=key, data=np.ascontiguousarray(values),
                chunks=chunks_of(values.shape, values.itemsize), compressors=compressors("none"),
                config={"write_empty_chunks": True},
            )  # fmt: skip

    def put(self, name: str, values: np.ndarray, where: tuple[slice | int, ...] = ()) -> None:
        """Write a region of whole chunks; other processes may write others meanwhile."""
        key = f"{self.key}/{self.generation}/{name}"
        with storage_errors(key):
            array = zarr.open_array(self.store, path=key, mode="r+")
            array.with_config({"write_empty_chunks": True})[where or ...] = values

    def note(self, name: str) -> None:
        """Leave a mark in the draft, to know later what it holds."""
        Documents(self.store).write_json(f"{self.key}/{self.generation}/{name}.json", {"written": True})

    def noted(self, name: str) -> bool:
        """Whether `note` was called with this name."""
        return Documents(self.store).exists(f"{self.key}/{self.generation}/{name}.json")

    def drop(self) -> None:
        """Remove what was written."""
        Documents(self.store).delete(f"{self.key}/{self.generation}")

    def commit(self, names: Sequence[str], description: dict[str, Any]) -> None:
        """Switch the record to this draft; drop the one before, and drafts that were given up.

        Args:
            names: of the arrays.
            description: JSON values.
        """
        documents = Documents(self.store)
        key = f"{self.key}/{layout.RECORD}"
        names = sorted(names)
        path = f"{self.key}/{self.generation}"
        found = at_once(self.store, lambda name: _sha256(documents.read(f"{path}/{name}/zarr.json") or b""), names)
        metadata = dict(zip(names, found, strict=True))
        document = {**description, "arrays": names, "metadata": metadata, "generation": self.generation}
        documents.write_json(key, document)
        for name in documents.names(self.key):
            if _GENERATION.fullmatch(name) and name != self.generation:
                documents.delete(f"{self.key}/{name}")


class Records:
    """Read and write records."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._documents = Documents(store)

    def exists(self, key: str) -> bool:
        """Whether there is a whole record."""
        return self._documents.exists(f"{key}/{layout.RECORD}")

    def description(self, key: str) -> dict[str, Any] | None:
        """The record's description without its arrays, or None if there is no whole record."""
        return self._documents.read_json(f"{key}/{layout.RECORD}")

    def draft(self, key: str, generation: str | None = None) -> Draft:
        """Begin to write a record, or go on with a draft of the same generation."""
        return Draft(self._store, key, generation or uuid4().hex[:16])

    def write(self, key: str, description: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the record at `key`; the one before stays until the new one is whole."""
        draft = self.draft(key)
        at_once(self._store, lambda item: draft.add(*item), arrays.items())
        draft.commit(list(arrays), description)

    def read(self, key: str, only: Sequence[str] | None = None) -> Record | None:
        """The record at `key`, or None if there is no whole record. It may be replaced meanwhile: then the new one.

        Args:
            key: of the record.
            only: these of its arrays; None for all.

        Raises:
            CorruptDataError: a chunk is missing or fails its checksum.
        """
        description = self.description(key)
        for attempt in range(_ATTEMPTS):
            if description is None:
                break
            try:
                return self._read(key, description, only)
            except (CorruptDataError, StorageError):
                before, description = description, self.description(key)
                if description == before or attempt == _ATTEMPTS - 1:
                    raise
        return None

    def _read(self, key: str, description: dict[str, Any], only: Sequence[str] | None) -> Record:
        """The record with this description."""
        names = _names(description, key) if only is None else only
        found = at_once(self._store, lambda name: self._metadata(key, description, name), names)
        arrays = sync(self._values(key, description, dict(zip(names, found, strict=True))))
        return Record({name: value for name, value in description.items() if name not in _OWN}, arrays)

    def array(self, key: str, description: dict[str, Any], name: str, part: int | None = None) -> np.ndarray:
        """One array of the record with this description; with `part`, only this index of its first dimension.

        Raises:
            CorruptDataError: a chunk is missing or fails its checksum.
        """
        metadata = {name: self._metadata(key, description, name)}
        return sync(self._values(key, description, metadata, ... if part is None else part))[name]

    def _metadata(self, key: str, description: dict[str, Any], name: str) -> dict[str, Any]:
        """What zarr says of an array of the record; a checksum covers bytes, not what is made of them."""
        expected = (description.get("metadata") or {}).get(name)
        found = self._documents.read(f"{key}/{description.get('generation')}/{name}/zarr.json")
        if found is None or _sha256(found) != expected:
            raise CorruptDataError(
                "The metadata of an array is missing or damaged.", expected=f"zarr.json with SHA-256 {expected}",
                got="another, or none", where=f"{key}/{name}", remedy=_REMEDY,
            )  # fmt: skip
        return dict(json.loads(found))

    async def _values(
        self, key: str, description: dict[str, Any], metadata: Mapping[str, dict[str, Any]], region: Any = ...
    ) -> dict[str, np.ndarray]:
        """Arrays by name, all on their way at the same time."""

        async def read(name: str) -> np.ndarray:
            where = f"{key}/{name}"
            with storage_errors(where):
                path = StorePath(self._store, f"{key}/{description['generation']}/{name}")
                array = zarr.AsyncArray.from_dict(path, metadata[name])
                values = np.asarray(await array.getitem(region))
                # after reading: a chunk that somebody deletes meanwhile is read as zeros
                if not await _is_whole(array):
                    raise _missing(where)
                return values

        return dict(zip(metadata, await asyncio.gather(*map(read, metadata)), strict=True))


_OWN = ("arrays", "metadata", "generation")


async def _is_whole(array: zarr.AsyncArray[Any]) -> bool:
    """Whether every chunk is there."""
    try:
        return await array.nchunks_initialized() == array.nchunks
    except FileNotFoundError as error:
        if error.errno is None:  # the bucket is gone
            raise
        return False  # a directory is deleted between its own listing and that of the one above


def _sha256(metadata: bytes) -> str:
    return hashlib.sha256(metadata).hexdigest()


def _names(description: dict[str, Any], key: str) -> list[str]:
    names = description.get("arrays")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorruptDataError(
            "A record does not say which arrays it holds.",
            expected="a list of names under 'arrays'",
            got=names,
            where=f"{key}/{layout.RECORD}",
            remedy=_REMEDY,
        )
    return names


def chunks_of(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Whole trailing dimensions, as many leading entries as fit into CHUNK_BYTES."""
    remaining = max(1, CHUNK_BYTES // item_bytes)
    chunks: list[int] = []
    for size in reversed(shape):
        chunks.append(max(1, min(size, remaining)))
        remaining = max(1, remaining // max(1, size))
    return tuple(reversed(chunks))


def _missing(key: str) -> CorruptDataError:
    return CorruptDataError(
        "A part of a committed record is missing.",
        expected="every chunk of the array",
        got="missing chunks",
        where=key,
        remedy=_REMEDY,
    )
