"""A job's process as the worker sees it: messages come out, and it goes, with all that it started, when told to."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

_PIECE_BYTES = 8192
_LOG_PIECES = 32
_LONGEST_LINE_BYTES = 64 * 2**20


class Child:
    """`python -m streamsparse.service.work` for one job, in a process group of its own.

    It loads its libraries at once, which takes seconds, and then waits for its job.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "streamsparse.service.work"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._input = self._process.stdin
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._log: deque[bytes] = deque(maxlen=_LOG_PIECES)
        self._readers = [
            threading.Thread(target=self._read_messages, args=[self._process.stdout], daemon=True),
            threading.Thread(target=self._read_log, args=[self._process.stderr], daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def begin(self, job: Mapping[str, Any]) -> None:
        """Give it its job, see `stages.perform`."""
        with suppress(BrokenPipeError):  # it has died: its exit status and its log say why
            self._input.write(json.dumps(dict(job)).encode() + b"\n")
            self._input.flush()

    @property
    def process(self) -> int:
        """Its number."""
        return self._process.pid

    def messages(self, seconds: float) -> list[dict[str, Any]]:
        """What it said, waiting at most so long for the first."""
        found: list[dict[str, Any]] = []
        with suppress(queue.Empty):
            found.append(self._messages.get(timeout=seconds))
            while True:
                found.append(self._messages.get_nowait())
        return found

    def log(self) -> str:
        """The end of its standard error."""
        return b"".join(self._log).decode(errors="replace").replace("\0", "�")

    def ended(self) -> int | None:
        """Its exit status once it and its messages have ended, negative for a signal; None before."""
        status = self._process.poll()
        if status is None:
            return None
        for reader in self._readers:  # a process of its own may keep the pipe open; it is not waited for
            reader.join(timeout=2.0)
        return status

    def stop(self, patience_seconds: float) -> None:
        """End it and whatever it started: SIGTERM, and after some patience SIGKILL."""
        deadline = time.monotonic() + patience_seconds
        self._signal(signal.SIGTERM)
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Give back its pipes; a process that still runs ends with its standard input."""
        with suppress(BrokenPipeError, OSError):
            self._input.close()
        self._process.wait()
        for reader, stream in zip(self._readers, (self._process.stdout, self._process.stderr), strict=True):
            reader.join(timeout=2.0)
            if stream is not None and not reader.is_alive():
                stream.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read_messages(self, stream: IO[bytes]) -> None:
        while line := stream.readline(_LONGEST_LINE_BYTES):
            with suppress(ValueError):  # half a line of a process that was killed
                message = json.loads(line)
                if isinstance(message, dict):
                    self._messages.put(message)

    def _read_log(self, stream: IO[bytes]) -> None:
        while piece := os.read(stream.fileno(), _PIECE_BYTES):
            self._log.append(piece)
