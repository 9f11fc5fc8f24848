"""One job in a process of its own: `python -m streamsparse.service.work`, started by the worker.

    standard input    one line of JSON: what to do; then nothing, until the service closes it or dies
    standard output   JSON lines: events as they happen, and at the end a result or an error
    standard error    whatever the libraries say: the job's log

The process ends when its standard input does: a service that was killed leaves no job behind, so that the next
service finds the run's lock free.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

from streamsparse.errors import StreamsparseError
from streamsparse.events import Advanced, Event, Finished, Notice, Reused, Started

ABANDONED_STATUS = 75
"""Of a process whose service is gone."""


class Reporter:
    """Writes events as JSON lines; progress at most every `seconds`, the last of a stage always."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], seconds: float = 0.25) -> None:
        self._stream, self._clock, self._seconds = stream, clock, seconds
        self._stages: dict[str, dict[str, Any]] = {}
        self._started: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._lock = threading.RLock()  # executors report from their own threads

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._report(event)

    def write(self, message: dict[str, Any]) -> None:
        """One line."""
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def _report(self, event: Event) -> None:
        match event:
            case Started(stage, total, unit):
                self._started[stage] = self._clock()
                self._stages[stage] = {"stage": stage, "done": 0, "total": total, "unit": unit}
                self._progress(stage)
            case Advanced(stage, amount) if stage in self._stages:
                self._stages[stage]["done"] += amount
                if self._clock() - self._written[stage] >= self._seconds:
                    self._progress(stage)
            case Finished(stage, seconds):
                if stage in self._stages:
                    self._progress(stage, finished=True)
                self.write({"type": "finished", "stage": stage, "seconds": seconds})
            case Reused(stage, what):
                self.write({"type": "reused", "stage": stage, "message": what})
            case Notice(stage, message):
                self.write({"type": "notice", "stage": stage, "message": message})
            case _:
                pass

    def _progress(self, stage: str, *, finished: bool = False) -> None:
        now, about = self._clock(), self._stages[stage]
        self._written[stage] = now
        seconds, done, total = now - self._started[stage], about["done"], about["total"]
        rate = done / seconds if done and seconds > 0 else None
        left = None if finished or rate is None or total is None else max(0.0, (total - done) / rate)
        self.write({"type": "progress", **about, "per_second": rate, "seconds_left": left, "finished": finished})


def watch_parent() -> queue.Queue[bytes]:
    """Read standard input from now on: where the job will come, and the end of this process when it ends."""
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        received = bytearray()
        while piece := os.read(0, 65536):
            received += piece
            if received.endswith(b"\n"):
                lines.put(bytes(received))
        os._exit(ABANDONED_STATUS)

    threading.Thread(target=read, name="parent", daemon=True).start()
    return lines


def give_up(reporter: Reporter, error: StreamsparseError) -> None:
    """End from another thread than the one that works: what is committed is whole at any moment."""
    reporter.write({"type": "error", "error": error.to_json()})
    sys.stderr.flush()
    os._exit(error.exit_status)


def main() -> int:
    """Read the job, do it, report; returns the exit status."""
    lines = watch_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print belongs to the log
    from streamsparse.service.stages import perform  # seconds, spent while the process waits for its job

    line = lines.get()
    reporter = Reporter(out, time.monotonic)
    try:
        result = perform(json.loads(line), reporter, partial(give_up, reporter))
    except StreamsparseError as error:
        traceback.print_exc()
        reporter.write({"type": "error", "error": error.to_json()})
        return error.exit_status
    except MemoryError:
        traceback.print_exc()
        summary = {"error": "MemoryLimitError", "summary": "The job ran out of memory."}
        reporter.write({"type": "error", "error": summary})
        return 1
    except Exception as error:  # noqa: BLE001  whatever it is, the service must hear of it
        traceback.print_exc()
        summary = {"error": type(error).__name__, "summary": f"The job failed: {error}"[:1000]}
        reporter.write({"type": "error", "error": summary})
        return 1
    reporter.write({"type": "result", "result": result})
    return 0


if __name__ == "__main__":
    exit_status = main()
    sys.stderr.flush()
    os._exit(exit_status)  # all is committed and reported; taking torch apart takes seconds
