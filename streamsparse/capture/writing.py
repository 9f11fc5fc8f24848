"""A thread that writes while the model runs, behind a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

from streamsparse.capture.taps import Values
from streamsparse.store.activations import ActivationWriter

_QUEUED_BATCHES = 2


class BackgroundWriter:
    """Writes batches in the order they are put; holds at most a few.

    Its errors are raised in the thread that puts, at the next `put` or on leaving the `with` block.
    """

    def __init__(self, writer: ActivationWriter, on_commit: Callable[[int], None]) -> None:
        """`on_commit` is called in the writer thread with the number of images of each committed batch."""
        self._writer = writer
        self._on_commit = on_commit
        self._queue: queue.Queue[tuple[int, Values, str] | None] = queue.Queue(_QUEUED_BATCHES)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._write_all, name="activation-writer", daemon=True)

    def put(self, batch: int, values: Values, digest: str) -> None:
        """Hand over one batch; waits while the queue is full."""
        self._raise_failure()
        self._queue.put((batch, values, digest))

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise_failure()

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # drain, so that nobody waits on a full queue
            batch, values, digest = item
            try:
                self._writer.write(batch, {name: tensor.numpy() for name, tensor in values.items()}, digest)
                self._on_commit(len(self._writer.plan.span(batch)))
            except BaseException as failure:  # noqa: BLE001  re-raised in the capturing thread
                self._failure = failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
