"""A thread that writes while the model runs, behind a bounded queue; and room on the store to write into."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from time import sleep
from types import TracebackType

from streamsparse.capture.taps import Values
from streamsparse.events import Notice, OnEvent
from streamsparse.store import layout
from streamsparse.store.activations import ActivationWriter
from streamsparse.store.documents import Documents
from streamsparse.store.stream import StreamPlan
from streamsparse.store.window import batches_held, batches_in_window, set_waiting

_QUEUED_BATCHES = 2
_POLL_SECONDS = 0.2


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
        self._put = self._written = 0
        self._thread = threading.Thread(target=self._write_all, name="activation-writer", daemon=True)

    def put(self, batch: int, values: Values, digest: str) -> None:
        """Hand over one batch; waits while the queue is full."""
        self._raise_failure()
        self._put += 1
        self._queue.put((batch, values, digest))

    def waiting(self) -> int:
        """Batches that were put and are not committed yet."""
        self._raise_failure()
        return self._put - self._written

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
                self._written += 1
                self._on_commit(len(self._writer.plan.span(batch)))
            except BaseException as failure:  # noqa: BLE001  re-raised in the capturing thread
                self._failure = failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


class Window:
    """Room on the store: a capture waits in it until somebody has summed and discarded enough batches."""

    def __init__(
        self, documents: Documents, plan: StreamPlan, window_bytes: int | None, stage: str, on_event: OnEvent
    ) -> None:
        """`window_bytes` None is room without end."""
        self._documents = documents
        self._shard = layout.shard_prefix(plan.stream, plan.shard, plan.shards)
        self._batches = None if window_bytes is None else batches_in_window(plan, window_bytes)
        self._notice = Notice(
            stage,
            f"the window ({self._batches} batches) is full; waiting for `accumulate RUN --follow --discard`",
        )
        self._on_event = on_event
        self._told = False

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._told:
            set_waiting(self._documents, self._shard, False)

    def wait_for_room(self, on_the_way: Callable[[], int]) -> None:
        """Return when one batch more, beside those on the way to the store, fits."""
        if self._batches is None or self._has_room(on_the_way):
            return
        set_waiting(self._documents, self._shard, True)
        if not self._told:
            self._on_event(self._notice)
        self._told = True
        while not self._has_room(on_the_way):
            sleep(_POLL_SECONDS)
        set_waiting(self._documents, self._shard, False)

    def _has_room(self, on_the_way: Callable[[], int]) -> bool:
        """Those on the way first: one that is committed in between is counted twice rather than not at all."""
        assert self._batches is not None
        going = on_the_way()
        return going + batches_held(self._documents, self._shard) < self._batches
