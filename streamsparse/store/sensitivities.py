"""Committed sensitivities of a run: one request that counts, and a document for every group that is measured.

A document counts if it was written for the request and for the front that the group has now, so another request or
another front makes what there was void without deleting it first, and a kill loses the group it was at.
"""

from __future__ import annotations

from typing import Any

from streamsparse.errors import CorruptDataError
from streamsparse.store import layout
from streamsparse.store.run import Run
from streamsparse.types import Sensitivity

_REMEDY = "delete it and run `streamsparse sensitivity` again"


def sensitivity_request(run: Run) -> dict[str, Any] | None:
    """How sensitivities were last asked for, or None."""
    return run.documents.read_json(layout.SENSITIVITIES)


def begin_sensitivities(run: Run, request: dict[str, Any]) -> None:
    """Make this the request that counts."""
    run.documents.write_json(layout.SENSITIVITIES, request)


def commit_sensitivity(run: Run, sensitivity: Sensitivity, front: str, request: dict[str, Any]) -> None:
    """Store what was found.

    Args:
        front: identity of the group's front that was cut.
        request: that it answers.
    """
    found = {"counts": list(sensitivity.counts), "losses": list(sensitivity.losses)}
    document = {"group": sensitivity.group, **found, "front": front, "request": request}
    run.documents.write_json(layout.sensitivity_key(sensitivity.group), document)


def read_sensitivity(run: Run, group: str, front: str, request: dict[str, Any]) -> Sensitivity | None:
    """What was found for this front and this request, or None.

    Raises:
        CorruptDataError: the document is damaged.
    """
    key = layout.sensitivity_key(group)
    document = run.documents.read_json(key)
    if document is None or document.get("front") != front or document.get("request") != request:
        return None
    try:
        counts = tuple(int(count) for count in document["counts"])
        losses = tuple(float(loss) for loss in document["losses"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            "A committed sensitivity is not readable.", expected="counts and losses", got=repr(error), where=key,
            remedy=_REMEDY,
        ) from error  # fmt: skip
    if document.get("group") != group or len(counts) != len(losses):
        raise CorruptDataError(
            "A committed sensitivity is not that of its group.", expected=f"'{group}', as many losses as counts",
            got=f"'{document.get('group')}', {len(counts)} counts, {len(losses)} losses", where=key, remedy=_REMEDY,
        )  # fmt: skip
    return Sensitivity(group, counts, losses)
