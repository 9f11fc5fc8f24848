"""Records: named float or integer arrays and a JSON description that commits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from streamsparse.errors import CorruptDataError
from streamsparse.store import layout
from streamsparse.store.codecs import compressors
from streamsparse.store.documents import Documents
from streamsparse.store.failures import storage_errors

CHUNK_BYTES = 128 * 2**20
_REMEDY = "restore the files from a copy, or delete the stage's output and run the stage again"


@dataclass(frozen=True, eq=False)
class Record:
    """What was committed under one key."""

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Records:
    """Read and write records; a write replaces the record of that key, and is nothing until it is whole."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._documents = Documents(store)

    def exists(self, key: str) -> bool:
        """Whether there is a whole record."""
        return self._documents.exists(f"{key}/{layout.RECORD}")

    def description(self, key: str) -> dict[str, Any] | None:
        """The record's description without its arrays, or None if there is no whole record."""
        return self._documents.read_json(f"{key}/{layout.RECORD}")

    def write(self, key: str, description: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the record at `key`."""
        self._documents.delete_key(f"{key}/{layout.RECORD}")  # first: a kill here must not leave half a record
        self._documents.delete(key)
        for name, array in arrays.items():
            with storage_errors(f"{key}/{name}"):
                zarr.create_array(
                    self._store,
                    name=f"{key}/{name}",
                    data=np.ascontiguousarray(array),
                    chunks=_chunks(array),
                    compressors=compressors("none"),
                    config={"write_empty_chunks": True},
                )
        self._documents.write_json(f"{key}/{layout.RECORD}", {**description, "arrays": sorted(arrays)})

    def read(self, key: str) -> Record | None:
        """The record at `key`, or None if there is no whole record.

        Raises:
            CorruptDataError: a chunk is missing or fails its checksum.
        """
        description = self.description(key)
        if description is None:
            return None
        names = description.pop("arrays", None)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CorruptDataError(
                "A record does not say which arrays it holds.",
                expected="a list of names under 'arrays'",
                got=names,
                where=f"{key}/{layout.RECORD}",
                remedy=_REMEDY,
            )
        return Record(description, {name: self._array(f"{key}/{name}") for name in names})

    def _array(self, key: str) -> np.ndarray:
        with storage_errors(key):
            try:
                array = zarr.open_array(self._store, path=key, mode="r")
            except FileNotFoundError as error:
                raise _missing(key) from error
            except (KeyError, TypeError) as error:  # metadata that is JSON, but not an array's
                raise CorruptDataError(
                    "The metadata of an array is damaged.", got=repr(error), where=key, remedy=_REMEDY
                ) from error
            if array.nchunks_initialized < array.nchunks:
                raise _missing(key)
            return np.asarray(array[...])


def _chunks(array: np.ndarray) -> tuple[int, ...]:
    """Whole trailing dimensions, as many leading entries as fit into CHUNK_BYTES."""
    remaining = max(1, CHUNK_BYTES // array.itemsize)
    chunks: list[int] = []
    for size in reversed(array.shape):
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
