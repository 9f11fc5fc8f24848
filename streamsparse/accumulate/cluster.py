"""Reductions on a Dask cluster, local or remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from distributed import Client, Future, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from streamsparse.accumulate.reduction import Item, Reduction, Result, merge_tree
from streamsparse.errors import ClusterError

_TIMEOUT_SECONDS = 20


class DaskExecutor:
    """Every item is one task; merges are tasks too, so partial results stay on the workers."""

    name = "dask"

    def __init__(self, client: Client) -> None:
        self._client = client

    def run(
        self, reductions: Sequence[Reduction[Item, Result]], on_item: Callable[[Item], None]
    ) -> Iterator[tuple[str, Result]]:
        items: dict[Future[Any], Any] = {}
        roots: dict[Future[Any], str] = {}
        for priority, reduction in enumerate(reductions):

            def leaf(
                item: Item, reduction: Reduction[Item, Result] = reduction, priority: int = priority
            ) -> Future[Any]:
                future = self._client.submit(reduction.map, item, pure=False, priority=-priority)
                items[future] = item
                return future

            def merge(
                first: Future[Any], second: Future[Any], reduction: Reduction[Item, Result] = reduction
            ) -> Future[Any]:
                return self._client.submit(reduction.merge, first, second, pure=False)

            roots[merge_tree(reduction.items, leaf, merge)] = reduction.key
        yield from self._results(items, roots, on_item)

    def _results(
        self, items: dict[Future[Any], Any], roots: dict[Future[Any], str], on_item: Callable[[Item], None]
    ) -> Iterator[tuple[str, Result]]:
        try:
            for future in as_completed({*items, *roots}):
                if future.status != "finished":
                    future.result()  # raises the task's own error, or that it was lost with the scheduler
                if future in items:
                    on_item(items.pop(future))
                if future in roots:
                    yield roots.pop(future), future.result()
        except (KilledWorker, CancelledError, RuntimeError, OSError, TimeoutError) as error:
            raise ClusterError(
                "The Dask cluster failed while it summed statistics.",
                got=f"{type(error).__name__}: {error}",
                remedy="check the scheduler's and the workers' logs, and that the workers have this version of "
                "streamsparse; then run the same command again: finished layers are kept",
            ) from error


@contextmanager
def cluster_executor(scheduler: str | None, workers: int, memory_limit_bytes: int | None) -> Iterator[DaskExecutor]:
    """Connect to a scheduler, or start local single-thread processes for the time of the `with` block.

    Raises:
        ClusterError: the scheduler cannot be reached.
    """
    if scheduler is None:
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",  # any free port: two clusters may run on one machine
                memory_limit=memory_limit_bytes or "auto",
            ) as cluster,
            Client(cluster) as client,
        ):
            yield DaskExecutor(client)
        return
    try:
        client = Client(scheduler, timeout=_TIMEOUT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            "The Dask scheduler cannot be reached.",
            expected=f"a scheduler within {_TIMEOUT_SECONDS} s",
            got=f"{type(error).__name__}: {error}",
            where=scheduler,
            remedy="start one with `dask scheduler`, check the address, or leave out --scheduler to work locally",
        ) from error
    with client:
        yield DaskExecutor(client)
