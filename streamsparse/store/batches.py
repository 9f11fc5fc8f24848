"""Which shards of a stream were begun, and which of their batches are whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamsparse.errors import CorruptDataError
from streamsparse.store import layout
from streamsparse.store.documents import Documents
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
    """

    shard: str
    index: int
    first_image: int
    images: int
    digest: str


def read_plans(documents: Documents, stream: str) -> dict[str, StreamPlan]:
    """The plans of the stream's shards, by the shards' prefixes; none if nothing was captured."""
    begun = f"activations/{layout.part(stream)}"
    shards = [f"{begun}/{name}" for name in documents.names(begun) if re.fullmatch(r"shard-\d+-of-\d+", name)]
    found = documents.read_many_json([f"{shard}/{layout.PLAN}" for shard in shards])
    return {shard: plan_from_json(plan) for shard, plan in zip(shards, found, strict=True) if plan is not None}


def committed_batches(documents: Documents, prefix: str, plan: StreamPlan) -> list[Batch]:
    """Batches of a shard whose marker belongs to this plan."""
    commits = f"{prefix}/commits"
    names = [name for name in documents.names(commits) if re.fullmatch(r"batch-\d{8}\.json", name)]
    markers = documents.read_many_json([f"{commits}/{name}" for name in names])
    return [
        _batch(marker, prefix, name)
        for name, marker in zip(names, markers, strict=True)
        if marker is not None and marker.get("plan") == plan.digest
    ]


def _batch(marker: Mapping[str, Any], prefix: str, name: str) -> Batch:
    try:
        fields = {key: marker[key] for key in ("first_image", "images", "digest")}
        return Batch(shard=prefix, index=marker["batch"], **fields)
    except KeyError as error:
        raise CorruptDataError(
            "The marker of a batch is incomplete.",
            expected=f"an entry {error}",
            got=", ".join(marker),
            where=f"{prefix}/commits/{name}",
            remedy="delete the marker and run `streamsparse capture` again: it resumes",
        ) from error
