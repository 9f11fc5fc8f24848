"""Looks at the Dask cluster beside a job that works there, for a cluster without workers says nothing by itself.

A client whose scheduler dies hears of it, and a stage that begins without workers says so. But tasks whose last
worker is gone simply stay queued, and a connection into a network that is gone stays open: a job would run for
ever without progress. Such a job gives up: what was committed stays, and it waits with the reason until it is tried
again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streamsparse.errors import ClusterError

_ANSWER_SECONDS = 5.0
_LOOKS = 10
"""In the time that a job is patient for."""

GiveUp = Callable[[ClusterError], None]


@contextmanager
def watched_cluster(address: str | None, patience_seconds: float, give_up: GiveUp) -> Iterator[None]:
    """Look at the cluster in a thread while the `with` block works there.

    Args:
        address: of the scheduler; None: there is nothing to look at.
        patience_seconds: without any worker, after which the block is given up.
        give_up: called at most once, in the thread; the block does not end by itself.
    """
    if address is None:
        yield
        return
    import distributed  # noqa: F401  before the thread: two that import it at once meet half a module

    stopping = threading.Event()

    def watch() -> None:
        error = _watch(address, patience_seconds, stopping)
        if error is not None:
            give_up(error)

    thread = threading.Thread(target=watch, name="cluster", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _watch(address: str, patience_seconds: float, stopping: threading.Event) -> ClusterError | None:
    """Until it is to stop, or the cluster was without workers for so long and at so many looks: a process that gets
    no time to look has seen nothing.
    """
    seen, missed = time.monotonic(), 0
    while not stopping.wait(patience_seconds / _LOOKS):
        found = asyncio.run(_look(address))
        if isinstance(found, int) and found > 0:
            seen, missed = time.monotonic(), 0
            continue
        missed += 1
        if missed >= _LOOKS // 2 and time.monotonic() - seen > patience_seconds and not stopping.is_set():
            return _lost(address, patience_seconds, "no workers" if found == 0 else str(found))
    return None


async def _look(address: str) -> int | str:
    """How many workers the scheduler has, or why it does not say."""
    from distributed.core import rpc

    try:
        async with rpc(address, timeout=_ANSWER_SECONDS) as scheduler:
            about = await asyncio.wait_for(scheduler.identity(n_workers=-1), _ANSWER_SECONDS)
        return len(about["workers"])
    except (OSError, TimeoutError) as error:
        return f"the scheduler does not answer ({type(error).__name__})"


def _lost(address: str, seconds: float, why: str) -> ClusterError:
    return ClusterError(
        "The Dask cluster is gone.",
        expected=f"a worker within {seconds:.0f} s",
        got=why,
        where=address,
        remedy="start workers with `dask worker ADDRESS --nthreads 1`; the job goes on from what is in the run",
    )
