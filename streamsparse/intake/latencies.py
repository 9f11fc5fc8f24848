"""Latencies by width that were measured for a run's model; see `streamsparse.latencies`."""

from __future__ import annotations

from streamsparse.errors import CorruptDataError, StageMissingError, UsageError
from streamsparse.intake.captured import Captured
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.store import Run, layout


def read_latencies(run: Run, captured: Captured, device: str) -> LatencyModel:
    """The table that was measured on a device, named as it was then.

    Raises:
        StageMissingError: none was.
        CorruptDataError: it is not readable.
    """
    found = run.documents.read_json(layout.latencies_key(device))
    if found is None or found.get("model") != captured.manifest["model"]["digest"]:
        there = [layout.name_of(name.removesuffix(".json")) for name in run.documents.names(layout.LATENCIES)]
        raise StageMissingError(
            f"No latencies were measured on '{device}'.",
            expected=f"a table of '{device}'",
            got=", ".join(f"'{name}'" for name in there) or "none",
            where=run.url,
            remedy=f"run `streamsparse latency {run.url} --device {device}` on the machine that is meant",
        )
    try:
        table = LatencyModel.from_json(found, captured.costs)
        table.seconds({})
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptDataError(
            "A table of latencies is not readable.", got=repr(error), where=layout.latencies_key(device),
            remedy=f"run `streamsparse latency {run.url} --device {device}` again",
        ) from error  # fmt: skip
    return table
