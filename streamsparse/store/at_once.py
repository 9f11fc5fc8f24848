"""Several requests to a distant store at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from zarr.abc.store import Store

from streamsparse.store.bucket import Bucket

THREADS = 8

Item = TypeVar("Item")
Value = TypeVar("Value")


def at_once(store: Store, work: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """`[work(item) for item in items]`, in threads where every request costs a round trip; a local disk answers
    faster than threads start. After a failure nothing new begins, and the first failure in order is raised.
    """
    items = list(items)
    if not isinstance(store, Bucket) or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(THREADS, len(items)), "store") as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in waiting]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
