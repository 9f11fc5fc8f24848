"""Where steps run: in this thread, in threads, in local processes, on a Dask cluster. One contract."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from streamsparse.errors import UsageError
from streamsparse.executors.processes import process_bytes
from streamsparse.executors.steps import Executor, Report, Step


class SerialExecutor:
    """The reference: one step after the other in the calling thread."""

    name = "serial"
    workers = 1
    tasks_per_process = 1

    def process_bytes(self, module: str) -> int:
        """Of this process."""
        return process_bytes()

    def memory_limit_bytes(self) -> int | None:
        """None of its own."""
        return None

    def run(self, steps: Sequence[Step], report: Report) -> Iterator[Step]:
        for step in steps:
            step.work(step.item, report)
            yield step


class ThreadExecutor:
    """A pool of threads; torch's own threads are shared between them."""

    name = "threads"

    def __init__(self, workers: int) -> None:
        self.workers = self.tasks_per_process = workers

    def process_bytes(self, module: str) -> int:
        """Of this process."""
        return process_bytes()

    def memory_limit_bytes(self) -> int | None:
        """None of its own."""
        return None

    def run(self, steps: Sequence[Step], report: Report) -> Iterator[Step]:
        messages: queue.SimpleQueue[int | tuple[Step, Future[None]]] = queue.SimpleQueue()
        waiting, done = list(steps), set[str]()
        pool = ThreadPoolExecutor(self.workers)

        def start_ready() -> None:
            for step in [step for step in waiting if done.issuperset(step.after)]:
                waiting.remove(step)
                future = pool.submit(step.work, step.item, messages.put)
                future.add_done_callback(lambda future, step=step: messages.put((step, future)))  # type: ignore[misc]

        try:
            start_ready()
            while len(done) < len(steps):
                message = messages.get()
                if isinstance(message, int):
                    report(message)
                    continue
                step, future = message
                future.result()
                done.add(step.key)
                start_ready()
                yield step
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Execution:
    """Where a stage is to run, opened when there is something to do.

    Attributes:
        kind, scheduler, workers, memory_limit_bytes: see `open_executor`.
    """

    kind: str = "serial"
    scheduler: str | None = None
    workers: int | None = None
    memory_limit_bytes: int | None = None

    def open(self) -> AbstractContextManager[Executor]:
        """The executor, for the time of a `with` block."""
        return open_executor(
            self.kind, scheduler=self.scheduler, workers=self.workers, memory_limit_bytes=self.memory_limit_bytes
        )


def require_reachable(url: str, executor: Executor) -> None:
    """Refuse a run in memory for workers that are other processes.

    Raises:
        UsageError: they could not read it.
    """
    if url == "memory://" and executor.name == "dask":
        raise UsageError(
            "A run in memory cannot be read by other processes.",
            expected="the serial or threads executor, or a RUN on disk",
            got=executor.name,
        )


@contextmanager
def open_executor(
    kind: str, *, scheduler: str | None = None, workers: int | None = None, memory_limit_bytes: int | None = None
) -> Iterator[Executor]:
    """An executor by name: "serial", "threads", "processes", or "dask" at a scheduler's address.

    Args:
        kind: of the executor; ignored when `scheduler` is given.
        scheduler: address such as tcp://host:8786.
        workers: threads or processes; None for one per core.
        memory_limit_bytes: per local process.

    Raises:
        UsageError: an unknown name.
        ClusterError: the scheduler cannot be reached.
    """
    count = workers or os.cpu_count() or 1
    if scheduler is not None or kind == "processes":
        from streamsparse.executors.cluster import cluster_executor  # Dask takes a second to import

        with cluster_executor(scheduler, count, memory_limit_bytes) as executor:
            yield executor
    elif kind == "serial":
        yield SerialExecutor()
    elif kind == "threads":
        yield ThreadExecutor(count)
    else:
        raise UsageError("Unknown executor.", expected="serial | threads | processes", got=kind, where="--executor")
