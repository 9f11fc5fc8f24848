"""Where reductions run: in this thread, in threads, in local processes, on a Dask cluster. One contract."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from streamsparse.accumulate.reduction import Executor, Item, Reduction, Result, merge_tree
from streamsparse.errors import UsageError


class SerialExecutor:
    """The reference: one item at a time in the calling thread, depth first, so few results are held at once."""

    name = "serial"

    def run(
        self, reductions: Sequence[Reduction[Item, Result]], on_item: Callable[[Item], None]
    ) -> Iterator[tuple[str, Result]]:
        for reduction in reductions:

            def leaf(item: Item, reduction: Reduction[Item, Result] = reduction) -> Result:
                result = reduction.map(item)
                on_item(item)
                return result

            yield reduction.key, merge_tree(reduction.items, leaf, reduction.merge)


class ThreadExecutor:
    """A pool of threads; torch's own threads are shared between them.

    As many items are under way as there are threads, across reductions, and results are merged in the order of
    the items, so that few are held at once.
    """

    name = "threads"

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def run(
        self, reductions: Sequence[Reduction[Item, Result]], on_item: Callable[[Item], None]
    ) -> Iterator[tuple[str, Result]]:
        work = iter([(reduction.map, item) for reduction in reductions for item in reduction.items])
        pool = ThreadPoolExecutor(self._workers)
        try:
            under_way = deque(pool.submit(map_, item) for map_, item in islice(work, self._workers))

            def leaf(item: Item) -> Result:
                result = under_way.popleft().result()
                under_way.extend(pool.submit(map_, item) for map_, item in islice(work, 1))
                on_item(item)
                return result

            for reduction in reductions:
                yield reduction.key, merge_tree(reduction.items, leaf, reduction.merge)
        finally:
            pool.shutdown(cancel_futures=True)


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
        from streamsparse.accumulate.cluster import cluster_executor  # Dask takes a second to import

        with cluster_executor(scheduler, count, memory_limit_bytes) as executor:
            yield executor
    elif kind == "serial":
        yield SerialExecutor()
    elif kind == "threads":
        yield ThreadExecutor(count)
    else:
        raise UsageError("Unknown executor.", expected="serial | threads | processes", got=kind, where="--executor")
