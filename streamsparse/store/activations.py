"""Dumped activations: written batch by batch, committed by a marker that comes last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from streamsparse.errors import CorruptDataError, RunMismatchError, StageMissingError
from streamsparse.store import layout
from streamsparse.store.codecs import compressors
from streamsparse.store.documents import Documents
from streamsparse.store.failures import storage_errors
from streamsparse.store.stream import SIDES, CapturedLayer, StreamPlan, plan_from_json

ArrayName = tuple[str, int, str]
"""(layer, call, side)"""


@dataclass(frozen=True)
class Batch:
    """A committed batch.

    Attributes:
        shard: prefix of its shard.
        index: of the batch in its shard.
        first_image: number of its first image in the run.
        images: how many.
        digest: SHA-256 of the model's input batch.
    """

    shard: str
    index: int
    first_image: int
    images: int
    digest: str


class ActivationWriter:
    """Writes the batches of one shard. Not thread-safe: one writer thread."""

    def __init__(self, store: Store, plan: StreamPlan) -> None:
        """Create the shard's arrays, or open them if this very plan began them before.

        Raises:
            RunMismatchError: the shard was begun with other settings.
        """
        self.plan = plan
        self._documents = Documents(store)
        self._prefix = layout.shard_prefix(plan.stream, plan.shard, plan.shards)
        self._begin()
        self._arrays = {
            (layer.geometry.layer, call, side): _open_or_create(store, self._prefix, plan, layer, call, side)
            for layer in plan.layers
            for call in range(layer.calls)
            for side in SIDES
        }

    def _begin(self) -> None:
        key = f"{self._prefix}/{layout.PLAN}"
        found = self._documents.read_json(key)
        if found is None:
            self._documents.write_json(key, self.plan.to_json())
        elif plan_from_json(found) != self.plan:
            raise RunMismatchError(
                "This shard was begun with other settings.",
                expected=_differences(plan_from_json(found), self.plan),
                got=_differences(self.plan, plan_from_json(found)),
                where=self._prefix,
                remedy="repeat the first settings to resume, pass --overwrite to start anew, or choose another RUN",
            )

    def committed(self) -> dict[int, Batch]:
        """Batches that are whole, by index."""
        return {batch.index: batch for batch in committed_batches(self._documents, self._prefix, self.plan)}

    def write(self, index: int, tensors: Mapping[ArrayName, np.ndarray], digest: str) -> None:
        """Store one batch and commit it.

        Args:
            index: of the batch in the shard.
            tensors: every array of the plan, (images of the batch, *shape), finite.
            digest: SHA-256 of the model's input batch.
        """
        span = self.plan.span(index)
        for name, array in self._arrays.items():
            with storage_errors(f"{self._prefix}/{'/'.join(map(str, name))}"):
                array[span.start : span.stop] = tensors[name]
        marker = {
            "plan": self.plan.digest,
            "batch": index,
            "first_image": self.plan.first_image + span.start,
            "images": len(span),
            "digest": digest,
        }
        self._documents.write_json(layout.commit_key(self._prefix, index), marker)


class ActivationReader:
    """Reads a stream, whole or as far as it has come. Cheap to open in every worker."""

    def __init__(self, store: Store, stream: str) -> None:
        """
        Raises:
            StageMissingError: nothing was captured under this name.
        """
        self._store = store
        self._documents = Documents(store)
        self._opened: dict[str, zarr.Array[Any]] = {}
        self.stream = stream
        names = self._documents.names(f"activations/{layout.part(stream)}")
        self.plans: dict[str, StreamPlan] = {}
        for name in names:
            if re.fullmatch(r"shard-\d+-of-\d+", name):
                prefix = f"activations/{layout.part(stream)}/{name}"
                found = self._documents.read_json(f"{prefix}/{layout.PLAN}")
                if found is not None:
                    self.plans[prefix] = plan_from_json(found)
        if not self.plans:
            raise StageMissingError(
                f"This run holds no activations of the stream '{stream}'.",
                expected="a capture",
                got="nothing",
                where=stream,
                remedy="run `streamsparse capture` first",
            )

    @property
    def layers(self) -> dict[str, CapturedLayer]:
        """By module path."""
        plan = next(iter(self.plans.values()))
        return {layer.geometry.layer: layer for layer in plan.layers}

    def batches(self) -> list[Batch]:
        """All committed batches, in order of their images."""
        found = [
            batch
            for prefix, plan in self.plans.items()
            for batch in committed_batches(self._documents, prefix, plan)
        ]
        return sorted(found, key=lambda batch: batch.first_image)

    def require_complete(self) -> list[Batch]:
        """All batches.

        Raises:
            StageMissingError: shards or batches are missing; says how many.
        """
        batches = self.batches()
        shards = next(iter(self.plans.values())).shards
        expected = sum(plan.batches for plan in self.plans.values())
        if len({plan.shards for plan in self.plans.values()}) > 1:
            raise RunMismatchError(
                "The shards of this capture were cut in different ways.",
                expected="one number of shards",
                got=", ".join(sorted(self.plans)),
                where=f"stream '{self.stream}'",
                remedy="capture again with --overwrite and the same N in every --shard I/N",
            )
        if len(self.plans) < shards or len(batches) < expected:
            raise StageMissingError(
                "The capture has not finished.",
                expected=f"{shards} shards, {expected} batches in those begun",
                got=f"{len(self.plans)} shards, {len(batches)} batches",
                where=f"stream '{self.stream}'",
                remedy="run `streamsparse capture` with the same arguments again: it resumes",
            )
        return batches

    def read(self, batch: Batch, layer: str, call: int, side: str) -> np.ndarray:
        """One batch of one array, (images, *shape) in the stored dtype.

        Raises:
            CorruptDataError: a chunk is damaged or missing.
        """
        key = layout.array_key(batch.shard, layer, call, side)
        where = f"{key}, batch {batch.index} (images {batch.first_image} to {batch.first_image + batch.images - 1})"
        span = self.plans[batch.shard].span(batch.index)
        with storage_errors(where):
            if key not in self._opened:
                self._opened[key] = zarr.open_array(self._store, path=key, mode="r")
            values = np.asarray(self._opened[key][span.start : span.stop])
        if np.isnan(values).any():
            raise CorruptDataError(
                "A chunk of a committed batch is missing.",
                expected="stored activations (captured values are always finite)",
                got="the fill value NaN",
                where=where,
                remedy="delete the batch's marker under commits/ and run `streamsparse capture` again",
            )
        return values


def committed_batches(documents: Documents, prefix: str, plan: StreamPlan) -> list[Batch]:
    """Batches of a shard whose marker belongs to this plan."""
    found = []
    for name in documents.names(f"{prefix}/commits"):
        if not re.fullmatch(r"batch-\d{8}\.json", name):
            continue
        marker = documents.read_json(f"{prefix}/commits/{name}")
        if marker is not None and marker.get("plan") == plan.digest:
            fields = {key: marker[key] for key in ("first_image", "images", "digest")}
            found.append(Batch(shard=prefix, index=marker["batch"], **fields))
    return found


def _open_or_create(
    store: Store, prefix: str, plan: StreamPlan, layer: CapturedLayer, call: int, side: str
) -> zarr.Array[Any]:
    key = layout.array_key(prefix, layer.geometry.layer, call, side)
    with storage_errors(key):
        try:
            return zarr.open_array(store, path=key, mode="r+")
        except FileNotFoundError:
            return zarr.create_array(
                store,
                name=key,
                shape=(plan.images, *layer.shape(side)),
                chunks=(plan.chunk_images(layer, side), *layer.shape(side)),
                dtype=plan.dtype,
                fill_value=float("nan"),
                compressors=compressors(plan.codec),
            )


def _differences(plan: StreamPlan, other: StreamPlan) -> str:
    ours, theirs = plan.to_json(), other.to_json()
    changed = [f"{key}={ours[key]}" for key in ours if key != "layers" and ours[key] != theirs[key]]
    if ours["layers"] != theirs["layers"]:
        changed.append(f"layers={[layer.geometry.layer for layer in plan.layers]}")
    return ", ".join(changed)
