"""Run a command and watch what its processes take: peak resident memory, as the kernel keeps it for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

STREAMSPARSE = (sys.executable, "-c", "from streamsparse.cli import main; main()")
_POLL_SECONDS = 0.02  # the peak is kept by the kernel: only what a process takes just before its end can be missed


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
        output: the JSON object on its last line.
        seconds: wall time, start and end of the processes included.
        peak_bytes: peak resident memory of the command's own process.
        worker_peak_bytes: of each Dask worker below it, largest first.
    """

    output: dict[str, Any]
    seconds: float
    peak_bytes: int
    worker_peak_bytes: tuple[int, ...]

    @property
    def largest_peak_bytes(self) -> int:
        """Of the processes that sum: the workers if there are any."""
        return max(self.worker_peak_bytes, default=self.peak_bytes)


def watch(*arguments: str) -> Watched:
    """`streamsparse ARGUMENTS --json` in a process of its own, on one thread.

    Raises:
        RuntimeError: it failed; says what it printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), environment.get("PYTHONPATH")]))
    peaks: dict[int, int] = {}
    workers: set[int] = set()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        command = subprocess.Popen([*STREAMSPARSE, *arguments, "--json"], stdout=out, stderr=err, env=environment)
        while command.poll() is None:
            _note_peaks(psutil.Process(command.pid), peaks, workers)
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - started
        out.seek(0), err.seek(0)
        if command.returncode:
            printed = out.read().decode() + err.read().decode()
            raise RuntimeError(f"{' '.join(arguments)}: exit status {command.returncode}\n{printed}")
        last = out.read().decode().splitlines()[-1]
    found = sorted((peaks[pid] for pid in workers), reverse=True)
    return Watched(json.loads(last), seconds, peaks[command.pid], tuple(found))


def _note_peaks(command: psutil.Process, peaks: dict[int, int], workers: set[int]) -> None:
    with suppress(psutil.Error, OSError, ValueError):
        for process in [command, *command.children(recursive=True)]:
            peaks[process.pid] = max(peaks.get(process.pid, 0), peak_bytes(process.pid))
            if process.pid != command.pid and process.pid not in workers and _is_worker(process):
                workers.add(process.pid)


def _is_worker(process: psutil.Process) -> bool:
    """Dask's nannies spawn the workers by multiprocessing; its tracker of resources sums nothing."""
    line = " ".join(process.cmdline())
    return "spawn_main" in line or "dask_worker" in line


def peak_bytes(pid: int) -> int:
    """Peak resident memory of a process that is running; 0 when it has just ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0
