"""Where reductions run: in this thread, in threads, in local processes, on a Dask cluster. One contract.

A reduction maps every item and merges the results pairwise, neighbours first, in a tree whose shape depends on
the number of items alone; so every executor adds in the same order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

from streamsparse.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reduction(Generic[Item, Result]):
    """Map every item (at least one), then merge.

    Attributes:
        key: names the reduction in the results.
        items, map, merge: picklable; `merge` does not change its arguments.
    """

    key: str
    items: tuple[Item, ...]
    map: Callable[[Item], Result]
    merge: Callable[[Result, Result], Result]


class Executor(Protocol):
    """Runs reductions and yields (key, result) as they finish, in any order."""

    name: str

    def run(
        self, reductions: Sequence[Reduction[Item, Result]], on_item: Callable[[Item], None]
    ) -> Iterator[tuple[str, Result]]:
        """`on_item` is called in the caller's thread for every item that was mapped."""
        ...


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


def merge_tree(
    items: Sequence[Item], leaf: Callable[[Item], Result], merge: Callable[[Result, Result], Result]
) -> Result:
    """Merge `leaf(item)` over all items: the first half with the second, recursively."""
    if len(items) == 1:
        return leaf(items[0])
    middle = len(items) // 2
    return merge(merge_tree(items[:middle], leaf, merge), merge_tree(items[middle:], leaf, merge))


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
