"""Markers of a shard: each must name its own batch of its own plan, once."""

from __future__ import annotations

import re

from streamsparse.store import Run, layout
from streamsparse.store.batches import Batch
from streamsparse.store.planned import require_own_batch
from streamsparse.store.stream import StreamPlan
from streamsparse.verification.findings import Findings

_NAME = re.compile(r"batch-(\d{8})\.json")


def check_markers(run: Run, prefix: str, plan: StreamPlan, findings: Findings) -> list[Batch]:
    """The batches of a shard whose markers are right, by index; everything else is a problem."""
    commits = layout.commit_key(prefix, 0).rpartition("/")[0]
    batches: dict[int, Batch] = {}
    for name in run.documents.names(commits):
        key, found = f"{commits}/{name}", _NAME.fullmatch(name)
        if name.endswith(".partial"):
            findings.note(f"{key} is a leftover of a write that was killed; it counts for nothing")
        elif found is None:
            findings.note(f"{key} is not a marker; it counts for nothing")
        else:
            with findings.guarding(key):
                marker = run.documents.read_json(key)
                if marker is not None:
                    require_own_batch(marker, int(found[1]), plan, key)
                    batch = Batch(
                        prefix, marker["batch"], marker["first_image"], marker["images"], marker["digest"]
                    )
                    batches[batch.index] = batch
    return [batches[index] for index in sorted(batches)]
