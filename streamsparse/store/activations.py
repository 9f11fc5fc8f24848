"""Dumped activations: written batch by batch, committed by a marker that comes last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from streamsparse.errors import CorruptDataError, DataError, RunMismatchError, StageMissingError
from streamsparse.store import layout
from streamsparse.store.at_once import at_once
from streamsparse.store.batches import Batch, committed_batches, read_plans
from streamsparse.store.codecs import rounded
from streamsparse.store.documents import Documents
from streamsparse.store.failures import storage_errors
from streamsparse.store.planned import array_arguments, open_planned
from streamsparse.store.stream import SIDES, CapturedLayer, StreamPlan, plan_from_json

ArrayName = tuple[str, int, str]
"""(layer, call, side)"""


class ActivationWriter:
    """Writes the batches of one shard. Not thread-safe: one writer thread."""

    def __init__(self, store: Store, plan: StreamPlan) -> None:
        """Create the shard's arrays, or open them if this very plan began them before.

        Raises:
            RunMismatchError: the shard was begun with other settings.
        """
        self.plan = plan
        self._store = store
        self._documents = Documents(store)
        self._prefix = layout.shard_prefix(plan.stream, plan.shard, plan.shards)
        self._begin()
        places = [(layer, call, side) for layer in plan.layers for call in range(layer.calls) for side in SIDES]
        arrays = at_once(store, lambda place: _open_or_create(store, self._prefix, plan, *place), places)
        self._arrays = {
            (layer.geometry.layer, call, side): array
            for (layer, call, side), array in zip(places, arrays, strict=True)
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

        Raises:
            DataError: shapes that are not the plan's; nothing of the batch is stored.
            StorageError: the store failed; the batch does not count.
        """
        span = self.plan.span(index)
        self._check_shapes(index, tensors)

        def put(name: ArrayName) -> None:
            with storage_errors(f"{self._prefix}/{'/'.join(map(str, name))}"):
                self._arrays[name][span.start : span.stop] = rounded(tensors[name], self.plan.codec)

        at_once(self._store, put, self._arrays)
        marker = {
            "plan": self.plan.digest,
            "batch": index,
            "first_image": self.plan.first_image + span.start,
            "images": len(span),
            "digest": digest,
        }
        self._documents.write_json(layout.commit_key(self._prefix, index), marker)

    def _check_shapes(self, index: int, tensors: Mapping[ArrayName, np.ndarray]) -> None:
        """Zarr would broadcast smaller arrays over the batch."""
        images = len(self.plan.span(index))
        for name, array in self._arrays.items():
            expected, got = (images, *array.shape[1:]), tensors[name].shape
            if got != expected:
                raise DataError(
                    "The activations of a batch have another shape than those of the example image.",
                    expected=expected,
                    got=got,
                    where=f"{name[2]} of layer '{name[0]}', batch {index}",
                    remedy="give all images the same size",
                )


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
        self.plans = read_plans(self._documents, stream)
        if not self.plans:
            raise StageMissingError(
                f"This run holds no activations of the stream '{stream}'.",
                expected="a capture",
                got="nothing",
                where=stream,
                remedy="run `streamsparse capture` first",
            )

    @property
    def example_plan(self) -> StreamPlan:
        """Of any shard; the shards of a capture differ in their images alone."""
        return next(iter(self.plans.values()))

    @property
    def layers(self) -> dict[str, CapturedLayer]:
        """By module path."""
        return {layer.geometry.layer: layer for layer in self.example_plan.layers}

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
                remedy="capture again with the same N in every --shard I/N, the first of them with --overwrite",
            )
        if not self.all_committed(len(batches)):
            raise StageMissingError(
                "The capture has not finished.",
                expected=f"{shards} shards, {expected} batches in those begun",
                got=f"{len(self.plans)} shards, {len(batches)} batches",
                where=f"stream '{self.stream}'",
                remedy="run `streamsparse capture` with the same arguments again: it resumes",
            )
        return batches

    def all_committed(self, batches: int) -> bool:
        """Whether all shards were begun, and so many batches are all that they have."""
        plans = self.plans.values()
        return len(plans) >= self.example_plan.shards and batches >= sum(plan.batches for plan in plans)

    def read(self, batch: Batch, layer: str, call: int, side: str, images: range | None = None) -> np.ndarray:
        """One batch of one array, (images, *shape) in the stored dtype.

        Args:
            batch: a committed one.
            layer, call, side: name the array.
            images: only these, counted from the batch's first; best a run of whole chunks.

        Raises:
            CorruptDataError: a chunk is damaged or missing.
        """
        key = layout.array_key(batch.shard, layer, call, side)
        where = f"{key}, batch {batch.index} (images {batch.first_image} to {batch.first_image + batch.images - 1})"
        first = self.plans[batch.shard].span(batch.index).start
        wanted = range(batch.images) if images is None else images
        with storage_errors(where):
            array = self._array(key, batch.shard, layer, side)
            values = np.asarray(array[first + wanted.start : first + wanted.stop])
        if np.isnan(values).any():
            raise CorruptDataError(
                "A chunk of a committed batch is missing.",
                expected="stored activations (captured values are always finite)",
                got="the fill value NaN",
                where=where,
                remedy="delete the batch's marker under commits/ and run `streamsparse capture` again",
            )
        return values

    def _array(self, key: str, shard: str, layer: str, side: str) -> zarr.Array[Any]:
        if key not in self._opened:
            plan = self.plans[shard]
            captured = {entry.geometry.layer: entry for entry in plan.layers}[layer]
            self._opened[key] = open_planned(self._store, plan, captured, side, key)
        return self._opened[key]


def _open_or_create(
    store: Store, prefix: str, plan: StreamPlan, layer: CapturedLayer, call: int, side: str
) -> zarr.Array[Any]:
    key = layout.array_key(prefix, layer.geometry.layer, call, side)
    if Documents(store).exists(f"{key}/zarr.json"):
        return open_planned(store, plan, layer, side, key, mode="r+")
    with storage_errors(key):
        return zarr.create_array(store, name=key, **array_arguments(plan, layer, side))


def _differences(plan: StreamPlan, other: StreamPlan) -> str:
    ours, theirs = plan.to_json(), other.to_json()
    changed = [f"{key}={ours[key]}" for key in ours if key != "layers" and ours[key] != theirs[key]]
    if ours["layers"] != theirs["layers"]:
        changed.append(f"layers={[layer.geometry.layer for layer in plan.layers]}")
    return ", ".join(changed)
