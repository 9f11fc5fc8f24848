"""Losses of whole cut networks that were measured, so that a killed improvement goes on.

One record for each set of fronts, images and model: counts of its groups, (networks, groups), and the losses of the
networks with them, image by image, (networks, images) float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamsparse.errors import CorruptDataError
from streamsparse.store import layout
from streamsparse.store.run import Run

Losses = dict[tuple[int, ...], np.ndarray]
"""Of every image, by counts, the groups in alphabetical order."""


def commit_measured(run: Run, digest: str, losses: Mapping[tuple[int, ...], np.ndarray]) -> None:
    """Replace what is there.

    Args:
        digest: of everything that a loss depends on but the counts.
    """
    arrays = {"counts": np.array(list(losses), dtype=np.int64), "losses": np.stack(list(losses.values()))}
    run.records.write(layout.measured_key(digest), {"digest": digest}, arrays)


def read_measured(run: Run, digest: str) -> Losses:
    """What was measured; {} if nothing was.

    Raises:
        CorruptDataError: the record is damaged.
    """
    key = layout.measured_key(digest)
    record = run.records.read(key)
    if record is None or record.description.get("digest") != digest:
        return {}
    counts, losses = (record.arrays.get(name) for name in ("counts", "losses"))
    if counts is None or losses is None or counts.ndim != 2 or losses.ndim != 2 or len(counts) != len(losses):
        raise CorruptDataError(
            "Measured losses are not readable.", expected="counts (networks, groups), losses (networks, images)",
            got={name: array.shape for name, array in record.arrays.items()}, where=key,
            remedy="delete it and run `streamsparse improve` again",
        )  # fmt: skip
    return {tuple(map(int, own)): loss for own, loss in zip(counts, losses, strict=True)}
