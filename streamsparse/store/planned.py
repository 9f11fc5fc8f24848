"""Captured arrays against their plan: their metadata, their markers, and chunks that no marker commits.

A chunk's checksum covers its bytes, but not what the array's `zarr.json` makes of them: another byte order, dtype,
fill value or shape would be read without complaint. Everything in it that decides how bytes become values follows
from the plan, so it is compared with the plan.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import zarr
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from streamsparse.errors import CorruptDataError
from streamsparse.store import layout
from streamsparse.store.codecs import compressors
from streamsparse.store.documents import Documents
from streamsparse.store.failures import storage_errors
from streamsparse.store.stream import SIDES, CapturedLayer, StreamPlan

_DECISIVE = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
_REMEDY = "restore zarr.json from a copy, or capture again with --overwrite"


@dataclass(frozen=True)
class ArrayId:
    """One array of a shard."""

    layer: CapturedLayer
    call: int
    side: str

    def key(self, prefix: str) -> str:
        """Below the shard's prefix."""
        return layout.array_key(prefix, self.layer.geometry.layer, self.call, self.side)


def arrays_of(plan: StreamPlan) -> list[ArrayId]:
    """Every array that the plan describes, in order of execution."""
    return [ArrayId(layer, call, side) for layer in plan.layers for call in range(layer.calls) for side in SIDES]


def array_arguments(plan: StreamPlan, layer: CapturedLayer, side: str) -> dict[str, Any]:
    """What `zarr.create_array` is called with."""
    return {
        "shape": (plan.images, *layer.shape(side)),
        "chunks": (plan.chunk_images(layer, side), *layer.shape(side)),
        "dtype": plan.dtype,
        "fill_value": float("nan"),
        "compressors": compressors(plan.codec, plan.dtype),
    }


def require_planned(array: zarr.Array[Any], plan: StreamPlan, layer: CapturedLayer, side: str, key: str) -> None:
    """Compare an array's metadata with what its plan gives.

    Raises:
        CorruptDataError: another shape, dtype, chunk grid, fill value or chain of codecs; says which.
    """
    shape, chunks = (plan.images, *layer.shape(side)), (plan.chunk_images(layer, side), *layer.shape(side))
    expected, found = _metadata(shape, chunks, plan.dtype, plan.codec), array.metadata.to_dict()
    differing = [name for name in _DECISIVE if found.get(name) != expected[name]]
    if differing:
        raise CorruptDataError(
            "A captured array is not the one that its plan describes.",
            expected=", ".join(f"{name} {expected[name]}" for name in differing),
            got=", ".join(f"{name} {found.get(name)}" for name in differing),
            where=f"{key}/zarr.json",
            remedy=_REMEDY,
        )


def open_planned(
    store: Store, plan: StreamPlan, layer: CapturedLayer, side: str, key: str, mode: Literal["r", "r+"] = "r"
) -> zarr.Array[Any]:
    """Open a captured array for reading, or with "r+" for reading and writing.

    Raises:
        CorruptDataError: its metadata is missing, damaged, or not the plan's.
    """
    with storage_errors(f"{key}/zarr.json"):
        try:
            array = zarr.open_array(store, path=key, mode=mode)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise
            raise _unreadable(key, error) from error
        except Exception as error:  # metadata that is JSON, but not an array's, raises whatever it runs into
            raise _unreadable(key, error) from error
    require_planned(array, plan, layer, side, key)
    return array


def require_own_place(plan: StreamPlan, prefix: str) -> None:
    """A shard's plan must name the shard that it lies in: a directory that was copied would be counted twice.

    Raises:
        CorruptDataError: it names another.
    """
    own = layout.shard_prefix(plan.stream, plan.shard, plan.shards)
    if own != prefix:
        raise CorruptDataError(
            "A plan lies in another place than the shard that it describes.",
            expected=prefix,
            got=own,
            where=f"{prefix}/{layout.PLAN}",
            remedy="remove the copy, and capture this shard again",
        )


def require_own_batch(marker: Mapping[str, Any], number: int, plan: StreamPlan, key: str) -> None:
    """A marker must name the batch that its file name says, and that batch's images, of its own plan.

    Args:
        marker: the document.
        number: of the batch, from the file name.
        plan: of the shard.
        key: of the marker.

    Raises:
        CorruptDataError: it is stale or malformed, or its images would be counted twice or not at all.
    """
    images = plan.span(number) if number < plan.batches else range(0)
    expected = {
        "plan": plan.digest,
        "batch": number,
        "first_image": plan.first_image + images.start,
        "images": len(images),
    }
    found = {name: marker.get(name) for name in expected}
    if number >= plan.batches:
        summary = "A marker is for a batch that the plan does not have."
        raise _wrong_marker(summary, f"batches 0 to {plan.batches - 1}", f"batch {number}", key)
    if found["plan"] != expected["plan"]:
        raise _wrong_marker("A stale marker: it belongs to another plan.", expected["plan"], found["plan"], key)
    if found != expected:
        summary = "A marker names other images than its batch has: they would be counted twice or not at all."
        raise _wrong_marker(summary, expected, found, key)
    if not isinstance(marker.get("digest"), str):
        summary = "A marker does not hold the digest of its images."
        raise _wrong_marker(summary, "SHA-256 of the model's input batch", marker.get("digest", "nothing"), key)


def stray_chunks(
    documents: Documents, prefix: str, plan: StreamPlan, committed: Collection[int]
) -> tuple[Counter[int], int]:
    """Objects of a shard that count for nothing.

    Returns:
        chunks by the index of their batch, for batches without a marker; and temporary files that a kill left.
    """
    strays: Counter[int] = Counter()
    temporary = 0
    for array in arrays_of(plan):
        per_batch = plan.batch_images // plan.chunk_images(array.layer, array.side)
        for key in documents.keys(f"{array.key(prefix)}/"):
            temporary += key.endswith(".partial")
            found = re.search(r"/c/(\d+)(?:/0)*$", key)
            if found and int(found[1]) // per_batch not in committed:
                strays[int(found[1]) // per_batch] += 1
    return strays, temporary


@lru_cache(maxsize=1024)
def _metadata(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, codec: str) -> dict[str, Any]:
    """Of an array that is created like this, in the words of the installed zarr."""
    array = zarr.create_array(
        MemoryStore(), shape=shape, chunks=chunks, dtype=dtype, fill_value=float("nan"),
        compressors=compressors(codec, dtype),
    )  # fmt: skip
    return array.metadata.to_dict()


def _wrong_marker(summary: str, expected: object, got: object, key: str) -> CorruptDataError:
    return CorruptDataError(
        summary, expected=expected, got=got, where=key,
        remedy="delete the marker and run `streamsparse capture` again: it writes what is missing",
    )  # fmt: skip


def _unreadable(key: str, error: Exception) -> CorruptDataError:
    return CorruptDataError(
        "The metadata of a captured array is missing or damaged.",
        expected=f"{key}/zarr.json",
        got=f"{type(error).__name__}: {error}",
        where=f"{key}/zarr.json",
        remedy=_REMEDY,
    )
