"""Steps on a Dask cluster, local or remote. Sums stay in the run: what moves between processes is who does what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import dask
from distributed import Client, Future, LocalCluster, as_completed, get_worker
from distributed.scheduler import KilledWorker

from streamsparse.errors import ClusterError, UsageError
from streamsparse.executors.processes import process_bytes
from streamsparse.executors.steps import Report, Step

_TIMEOUT_SECONDS = 20
_POLL_SECONDS = 0.1
_SHARE_OF_LIMIT = 0.9
_FAILURES = (KilledWorker, CancelledError, RuntimeError, OSError, TimeoutError)
_MEMORY = {f"distributed.worker.memory.{part}": False for part in ("target", "spill", "pause")}
"""Workers hold sums that they add to, which nobody can spill; the limit itself stays."""


class DaskExecutor:
    """Every step is one task."""

    name = "dask"
    tasks_per_process = 1

    def __init__(self, client: Client) -> None:
        self._client = client
        found = self._first_workers()
        if not found:
            raise ClusterError(
                "The Dask cluster has no workers.",
                expected=f"at least one worker within {_TIMEOUT_SECONDS} s",
                got="none",
                where=client.scheduler.address if client.scheduler else None,
                remedy="start some with `dask worker ADDRESS --nthreads 1`",
            )
        self.workers = sum(worker["nthreads"] for worker in found)
        self.tasks_per_process = max(worker["nthreads"] for worker in found)
        limits = [worker["memory_limit"] for worker in found if worker.get("memory_limit")]
        self._limit = int(_SHARE_OF_LIMIT * min(limits)) if limits else None

    def _first_workers(self) -> list[dict[str, Any]]:
        """Those of the scheduler; of one that has just begun, as soon as the first has found it."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not (found := self._workers()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return found

    def _workers(self) -> list[dict[str, Any]]:
        with _translated():
            return list(self._client.scheduler_info(n_workers=-1)["workers"].values())

    def process_bytes(self, module: str) -> int:
        """The largest of the workers, after they have imported the module."""
        with _translated():
            return int(max(self._client.run(_worker_bytes, module).values()))

    def memory_limit_bytes(self) -> int | None:
        """What a worker may use: Dask kills one at 95 % of its limit."""
        return self._limit

    def run(self, steps: Sequence[Step], report: Report) -> Iterator[Step]:
        topic, amounts = f"streamsparse-{uuid4().hex}", SimpleQueue[int]()
        self._client.subscribe_topic(topic, lambda event: amounts.put(event[1]))
        futures: dict[str, Future[Any]] = {}
        for priority, step in enumerate(steps):
            after = [futures[key] for key in step.after]
            futures[step.key] = self._client.submit(
                _work, step.work, step.item, topic, *after, pure=False, priority=-priority
            )
        try:
            yield from self._done(dict(zip(futures.values(), steps, strict=True)), amounts, report)
        finally:
            with suppress(*_FAILURES):
                self._client.unsubscribe_topic(topic)

    def _done(self, steps: dict[Future[Any], Step], amounts: SimpleQueue[int], report: Report) -> Iterator[Step]:
        completed = as_completed(list(steps))
        with _translated():
            while not completed.is_empty():
                for future in completed.next_batch(block=False):
                    if future.status != "finished":
                        future.result()  # raises the task's own error, or that it was lost with the scheduler
                    yield steps[future]
                _drain(amounts, report)
                time.sleep(_POLL_SECONDS)
        _drain(amounts, report)


def _drain(amounts: SimpleQueue[int], report: Report) -> None:
    with suppress(Empty):
        while True:
            report(amounts.get_nowait())


def _work(work: Callable[[Any, Report], None], item: Any, topic: str, *_: object) -> None:
    """Runs on a worker."""
    worker = get_worker()
    work(item, lambda amount: worker.log_event(topic, amount))


def _worker_bytes(module: str) -> int:
    """Runs on a worker."""
    import_module(module)
    return process_bytes()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise ClusterError(
            "The Dask cluster failed while it worked.",
            got=f"{type(error).__name__}: {error}",
            remedy="check the scheduler's and the workers' logs (a worker that is killed again and again needs a "
            "higher memory limit) and that the workers have this version of streamsparse; then run the same "
            "command again: it goes on from what is in the run",
        ) from error


@contextmanager
def cluster_executor(scheduler: str | None, workers: int, memory_limit_bytes: int | None) -> Iterator[DaskExecutor]:
    """Connect to a scheduler, or start local single-thread processes for the time of the `with` block.

    Raises:
        ClusterError: the scheduler cannot be reached, or has no workers.
    """
    if scheduler is not None:
        with _connected(scheduler) as client:
            yield DaskExecutor(client)
        return
    with (
        dask.config.set(_MEMORY),
        _local_cluster(workers, memory_limit_bytes) as cluster,
        Client(cluster) as client,
    ):
        yield DaskExecutor(client)


def _local_cluster(workers: int, memory_limit_bytes: int | None) -> LocalCluster:
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # any free port: two clusters may run on one machine
            memory_limit=memory_limit_bytes or "auto",
        )
    except RuntimeError as error:
        raise ClusterError(
            "The local worker processes do not start.",
            expected=f"{workers} processes",
            got=f"{type(error).__name__}: {error}",
            remedy='in a script, call streamsparse under `if __name__ == "__main__":`, for workers import it; or '
            "use threads",
        ) from error


def _connected(scheduler: str) -> Client:
    if "://" not in scheduler:
        raise UsageError(
            "This is no address of a scheduler.", expected="tcp://HOST:PORT", got=scheduler, where="--scheduler"
        )
    try:
        return Client(scheduler, timeout=_TIMEOUT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            "The Dask scheduler cannot be reached.",
            expected=f"a scheduler within {_TIMEOUT_SECONDS} s",
            got=f"{type(error).__name__}: {error}",
            where=scheduler,
            remedy="start one with `dask scheduler`, check the address, or leave out --scheduler to work locally",
        ) from error
