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
    plans: dict[str, StreamPlan] = {}
    for name in documents.names(f"activations/{layout.part(stream)}"):
        if re.fullmatch(r"shard-\d+-of-\d+", name):
            prefix = f"activations/{layout.part(stream)}/{name}"
            found = documents.read_json(f"{prefix}/{layout.PLAN}")
            if found is not None:
                plans[prefix] = plan_from_json(found)
    return plans


def committed_batches(documents: Documents, prefix: str, plan: StreamPlan) -> list[Batch]:
    """Batches of a shard whose marker belongs to this plan."""
    found = []
    for name in documents.names(f"{prefix}/commits"):
        if not re.fullmatch(r"batch-\d{8}\.json", name):
            continue
        marker = documents.read_json(f"{prefix}/commits/{name}")
        if marker is not None and marker.get("plan") == plan.digest:
            found.append(_batch(marker, prefix, name))
    return found


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
