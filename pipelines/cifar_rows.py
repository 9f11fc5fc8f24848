"""Finished rows of an experiment, one JSON file each: a killed call, repeated, makes only what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from pipelines.training_state import write_whole
from streamsparse.errors import CorruptDataError
from streamsparse.events import OnEvent, Reused


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Count the wall time of the body to `stage`."""
    started = perf_counter()
    yield
    seconds[stage] += perf_counter() - started


def kept_row(
    folder: Path,
    name: str,
    asked: Mapping[str, Any],
    seconds: dict[str, float],
    make: Callable[[], dict[str, Any]],
    on_event: OnEvent,
) -> dict[str, Any]:
    """What was made for exactly this request before, or what `make` returns, kept for the next call.

    Args:
        folder: of the experiment; rows lie in `rows/NAME.json`.
        asked: JSON-able, all that the row depends on.
        seconds: wall time by stage; `make` adds to it, and a row that is used again adds what it took.

    Raises:
        CorruptDataError: a file that is no row.
    """
    file = folder / "rows" / f"{name}.json"
    wanted = json.loads(json.dumps(asked))
    if file.exists():
        found = _read(file)
        if found["asked"] == wanted:
            on_event(Reused("row", name))
            for stage, spent in found["seconds"].items():
                seconds[stage] += spent
            row: dict[str, Any] = found["row"]
            return row
    before = dict(seconds)
    made = make()
    spent = {stage: total - before[stage] for stage, total in seconds.items() if total > before[stage]}
    content = json.dumps({"asked": wanted, "row": made, "seconds": spent}, indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content.encode())
    kept: dict[str, Any] = json.loads(content)["row"]  # as the next call will read it
    return kept


def without_places(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary of what lay in a temporary directory: its networks have no checkpoints any more."""
    models = [
        {key: None if key.startswith("checkpoint") else value for key, value in model.items()}
        for model in summary["models"]
    ]
    return {**summary, "models": models}


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        if {"asked", "row", "seconds"} <= found.keys():
            return found
        raise ValueError("other fields")
    except (OSError, ValueError, AttributeError) as error:
        raise CorruptDataError(
            "A finished row cannot be read.", expected="JSON with asked, row and seconds", got=error, where=file,
            remedy="remove the file: the row is made anew",
        ) from error  # fmt: skip
