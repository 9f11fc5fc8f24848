"""Which shards of a stream were begun, and which of their batches are whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamsparse.errors import CorruptDataError
from streamsparse.store import layout
from streamsparse.store.documents import Documents
from streamsparse.store.planned import require_own_batch, require_own_place
from streamsparse.store.stream import StreamPlan, plan_from_json


@dataclass(frozen=True)
class Batch:
    """A committed batch.

    Attributes:
        shard: prefix of its shard.
        index: of the batch in its shard.
        first_image: number of its first image in the run.
        images: how many.
        digest: SHA-256 of the model's input batch.
        discarded: its chunks were deleted, because it is in sums that are kept.
    """

    shard: str
    index: int
    first_image: int
    images: int
    digest: str
    discarded: bool = False


def read_plans(documents: Documents, stream: str) -> dict[str, StreamPlan]:
    """The plans of the stream's shards, by the shards' prefixes; none if nothing was captured."""
    begun = f"activations/{layout.part(stream)}"
    shards = [f"{begun}/{name}" for name in documents.names(begun) if re.fullmatch(r"shard-\d+-of-\d+", name)]
    found = documents.read_many_json([f"{shard}/{layout.PLAN}" for shard in shards])
    plans = {shard: plan_from_json(plan) for shard, plan in zip(shards, found, strict=True) if plan is not None}
    for shard, plan in plans.items():
        require_own_place(plan, shard)
    return plans


def batch_markers(documents: Documents, prefix: str, folder: str = layout.COMMITS) -> list[str]:
    """Names of a shard's markers; temporary files that a kill left are none."""
    return [name for name in documents.names(f"{prefix}/{folder}") if re.fullmatch(r"batch-\d{8}\.json", name)]


def committed_batches(documents: Documents, prefix: str, plan: StreamPlan) -> list[Batch]:
    """Batches of a shard whose marker belongs to this plan."""
    names = batch_markers(documents, prefix)
    markers = documents.read_many_json([f"{prefix}/{layout.COMMITS}/{name}" for name in names])
    discarded = set(batch_markers(documents, prefix, layout.DISCARDED))
    for name, marker in zip(names, markers, strict=True):
        if marker is not None and marker.get("plan") == plan.digest:
            require_own_batch(marker, int(name[len("batch-") : -len(".json")]), plan, f"{prefix}/commits/{name}")
    return [
        _batch(marker, prefix, name, name in discarded)
        for name, marker in zip(names, markers, strict=True)
        if marker is not None and marker.get("plan") == plan.digest
    ]


def _batch(marker: Mapping[str, Any], prefix: str, name: str, discarded: bool) -> Batch:
    try:
        fields = {key: marker[key] for key in ("first_image", "images", "digest")}
        return Batch(shard=prefix, index=marker["batch"], discarded=discarded, **fields)
    except KeyError as error:
        raise CorruptDataError(
            "The marker of a batch is incomplete.",
            expected=f"an entry {error}",
            got=", ".join(marker),
            where=f"{prefix}/{layout.COMMITS}/{name}",
            remedy="delete the marker and run `streamsparse capture` again: it resumes",
        ) from error
