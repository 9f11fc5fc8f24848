"""What stages took: seconds and memory of each, kept in the run for its report.

    with recorded(run, "capture", on_event) as on_event:
        ...                                             the stage's work, which reports to this on_event

A record is written when work was done: when the stage has advanced. One that finds everything done before leaves
the record of that time alone. One that goes on after a kill or an error adds its seconds to those before.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import perf_counter

import torch

from streamsparse.errors import CorruptDataError, StorageError, StreamsparseError
from streamsparse.events import Advanced, Event, OnEvent, Reused
from streamsparse.store import layout
from streamsparse.store.run import Run

UNFINISHED_SECONDS = 15.0
"""How often a stage at work notes what it has taken so far: a kill loses no more of it."""


@dataclass(frozen=True)
class StageRecord:
    """What a stage took when it last found work to do.

    Attributes:
        stage: "capture", "accumulate", ...; of a capture in shards "capture 1 of 4".
        seconds: wall time, of all calls that it took to finish.
        peak_bytes: largest resident memory of its process, or of one that it started here and waited for, since
            that process began.
        finished: ISO 8601, UTC; None: it was killed or failed, or is still at work.
        machine: processor, cores and torch's threads in words.
        reused: what an earlier call had left, in words.
    """

    stage: str
    seconds: float
    peak_bytes: int
    finished: str | None
    machine: str
    reused: tuple[str, ...] = ()


@contextmanager
def recorded(run: Run, stage: str, on_event: OnEvent, *, name: str | None = None) -> Iterator[OnEvent]:
    """Record what the body takes; yields the listener to report to, which passes everything on to `on_event`.

    Args:
        run: to keep the record in; nothing is written before the stage has advanced.
        stage: events count whose stage is this, or begins with it and a space.
        name: of the record; None: `stage`.

    Raises:
        StorageError: the record cannot be written, as nothing else could be.
    """
    clock = _Clock(run, stage, name or stage, on_event)
    try:
        yield clock
    except StorageError:
        raise  # nothing more can be written, and trying would only take time
    except BaseException:
        with suppress(StreamsparseError):  # why the stage failed says more
            clock.note()
        raise
    clock.note(datetime.now(UTC).isoformat(timespec="seconds"))


def stage_records(run: Run) -> tuple[StageRecord, ...]:
    """All that a run holds, by name.

    Raises:
        CorruptDataError: one is damaged.
    """
    names = [name for name in run.documents.names(layout.TIMINGS) if name.endswith(".json") and name != "zarr.json"]
    found = (read_record(run, layout.name_of(name.removesuffix(".json"))) for name in names)
    return tuple(record for record in found if record is not None)


def read_record(run: Run, name: str) -> StageRecord | None:
    """One of them, or None.

    Raises:
        CorruptDataError: it is damaged.
    """
    key = layout.timing_key(name)
    document = run.documents.read_json(key)
    if document is None:
        return None
    try:
        record = StageRecord(**{**document, "reused": tuple(document["reused"])})
        whole = record.stage == name and record.seconds >= 0 and record.peak_bytes >= 0
    except (KeyError, TypeError) as error:
        raise _damaged(key, repr(error)) from error
    if not whole:
        raise _damaged(key, record)
    return record


def machine_words() -> str:
    """The processor, its cores and torch's threads, and the graphics card where one is in use."""
    threads = torch.get_num_threads()
    words = f"{_processor()}, {os.cpu_count()} cores, {threads} torch thread{'' if threads == 1 else 's'}"
    if torch.cuda.is_available():
        words += f", {torch.cuda.get_device_name()}"
    return words


class _Clock:
    """Listens to a stage, and writes what it has taken (mutable)."""

    def __init__(self, run: Run, stage: str, name: str, on_event: OnEvent) -> None:
        self._run, self._stage, self._name, self._on_event = run, stage, name, on_event
        self._started = self._noted = perf_counter()
        self._earlier_seconds: float | None = None  # of calls that did not finish; None: not looked up yet
        self._reused: list[str] = []
        self._advanced = False

    def __call__(self, event: Event) -> None:
        """Pass an event on, and see whether it is work."""
        self._on_event(event)
        own = event.stage == self._stage or event.stage.startswith(f"{self._stage} ")
        if isinstance(event, Reused) and own:
            self._reused.append(event.what)
        self._advanced |= isinstance(event, Advanced) and own and event.amount > 0
        if perf_counter() - self._noted > UNFINISHED_SECONDS:
            self.note()

    def note(self, finished: str | None = None) -> None:
        """Write the record, if there was work here or in an earlier call that did not finish."""
        self._noted = perf_counter()
        if not self._advanced and finished is None:
            return
        if self._earlier_seconds is None:  # now, not before: a stage may have cleared the run
            earlier = read_record(self._run, self._name)
            self._earlier_seconds = earlier.seconds if earlier is not None and earlier.finished is None else 0.0
        if not self._advanced and self._earlier_seconds == 0:
            return
        seconds = self._earlier_seconds + self._noted - self._started
        record = StageRecord(self._name, seconds, _peak_bytes(), finished, machine_words(), tuple(self._reused))
        self._run.documents.write_json(layout.timing_key(self._name), asdict(record))


def _peak_bytes() -> int:
    """Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN))


def _processor() -> str:
    """Model name of the CPU, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _damaged(key: str, got: object) -> CorruptDataError:
    return CorruptDataError(
        "The record of a stage's time is not readable.", expected="seconds and bytes of its own stage", got=got,
        where=key, remedy="delete it: nothing but the report reads it",
    )  # fmt: skip
