"""Markers of a shard: each must name its own batch of its own plan, once."""

from __future__ import annotations

import re
from typing import Any

from streamsparse.store import Run, layout
from streamsparse.store.batches import Batch
from streamsparse.store.stream import StreamPlan
from streamsparse.verification.findings import Findings

_NAME = re.compile(r"batch-(\d{8})\.json")
_REMEDY = "delete the marker and run `streamsparse capture` again: it writes that batch anew"


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
            with findings.guarding(key, _REMEDY):
                marker = run.documents.read_json(key)
                if marker is not None and _is_right(marker, int(found[1]), key, plan, findings):
                    batches[marker["batch"]] = Batch(
                        prefix, marker["batch"], marker["first_image"], marker["images"], marker["digest"]
                    )
    return [batches[index] for index in sorted(batches)]


def _is_right(marker: dict[str, Any], number: int, key: str, plan: StreamPlan, findings: Findings) -> bool:
    """Compare one marker with what the plan says about its batch."""
    if not findings.expect(
        marker.get("plan") == plan.digest, key, "A stale marker: it belongs to another plan.",
        expected=f"plan {plan.digest[:16]}…", got=f"plan {str(marker.get('plan'))[:16]}…", remedy=_REMEDY,
    ):  # fmt: skip
        return False
    if not findings.expect(
        0 <= number < plan.batches, key, "A marker is for a batch that the plan does not have.",
        expected=f"batches 0 to {plan.batches - 1}", got=f"batch {number}", remedy="delete the marker",
    ):  # fmt: skip
        return False
    span = plan.span(number)
    expected = {"batch": number, "first_image": plan.first_image + span.start, "images": len(span)}
    found = {name: marker.get(name) for name in expected}
    summary = "A marker names other images than its batch has: they would be counted twice or not at all."
    if not findings.expect(found == expected, key, summary, expected=expected, got=found, remedy=_REMEDY):
        return False
    digest = marker.get("digest")
    return findings.expect(
        isinstance(digest, str), key, "A marker does not hold the digest of its images.",
        expected="SHA-256 of the model's input batch", got=repr(digest)[:80], remedy=_REMEDY,
    )  # fmt: skip
