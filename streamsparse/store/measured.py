"""Losses of whole cut networks that were measured, so that a killed improvement goes on.

One document for each set of fronts, images and model: counts of its groups, and the loss of the network with them.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamsparse.errors import CorruptDataError
from streamsparse.store import layout
from streamsparse.store.run import Run

Losses = dict[tuple[int, ...], float]
"""By counts, the groups in alphabetical order."""


def commit_measured(run: Run, digest: str, losses: Mapping[tuple[int, ...], float]) -> None:
    """Replace what is there.

    Args:
        digest: of everything that a loss depends on but the counts.
    """
    document = {"losses": [[list(counts), loss] for counts, loss in losses.items()]}
    run.documents.write_json(layout.measured_key(digest), document)


def read_measured(run: Run, digest: str) -> Losses:
    """What was measured; {} if nothing was.

    Raises:
        CorruptDataError: the document is damaged.
    """
    key = layout.measured_key(digest)
    document = run.documents.read_json(key)
    if document is None:
        return {}
    try:
        return {tuple(int(count) for count in counts): float(loss) for counts, loss in document["losses"]}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            "Measured losses are not readable.", expected="pairs of counts and a loss", got=repr(error), where=key,
            remedy="delete it and run `streamsparse improve` again",
        ) from error  # fmt: skip
