"""A Dask cluster of separate processes, to be killed: a scheduler, single-thread workers, and the command line.

They are forked from a server that has imported everything once. Each may live in a network namespace of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of setns(2)


@dataclass(frozen=True)
class Place:
    """Where a process lives: an address, and a network namespace (None for that of the tests)."""

    host: str = "127.0.0.1"
    namespace: str | None = None

    def enter(self) -> None:
        """Before any thread is started."""
        if self.namespace is not None:
            with Path(f"/run/netns/{self.namespace}").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEW_NETWORK):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), self.namespace)


def run_scheduler(place: Place, port: int, config: dict[str, Any]) -> None:
    """Until it is killed."""
    place.enter()
    logging.disable(logging.WARNING)
    import dask
    from distributed import Scheduler

    async def serve() -> None:
        async with Scheduler(host=place.host, port=port, dashboard_address=f"{place.host}:0") as scheduler:
            await scheduler.finished()

    with dask.config.set(config):
        asyncio.run(serve())


def run_worker(
    place: Place, address: str, config: dict[str, Any], keep_seconds: float, pause_seconds: float
) -> None:
    """Until it is killed, or has lost its scheduler; keeps sums that often, and rests after every batch."""
    place.enter()
    logging.disable(logging.WARNING)
    import dask
    import torch
    from distributed import Worker

    from streamsparse.accumulate import task
    from tests.small import batch_by_batch

    torch.set_num_threads(1)  # the same bits whoever adds
    task.KEEP_SECONDS = keep_seconds

    def pieces(*arguments: Any, **options: Any) -> Iterator[Any]:
        for piece in batch_by_batch(*arguments, **options):
            time.sleep(pause_seconds)
            yield piece

    vars(task)["pieces"] = pieces

    async def serve() -> None:
        async with Worker(
            address, nthreads=1, host=place.host, memory_limit=0, dashboard_address=f"{place.host}:0"
        ) as worker:
            await worker.finished()

    with dask.config.set(config):
        asyncio.run(serve())


def run_client(place: Place, arguments: list[str], config: dict[str, Any], printed: Path) -> None:
    """The command line; what it prints is left in a file."""
    place.enter()
    import dask

    from streamsparse.cli import main

    with printed.open("w") as sys.stdout:
        sys.stderr = sys.stdout
        sys.argv = ["streamsparse", *arguments]
        with dask.config.set(config):
            main()


def fork_server() -> ForkServerContext:
    """With what these processes import, and what other tests have forked."""
    found = multiprocessing.get_context("forkserver")
    forked = ["distributed", "streamsparse.cli.app", "streamsparse.run", "streamsparse.executors.cluster"]
    lazily_imported = [
        "torch.export",
        "torch._dynamo",
        "torch._inductor",
        "torch.onnx",
        "torch._dynamo.convert_frame",
    ]
    found.set_forkserver_preload([*forked, *lazily_imported, "tests.small", __name__])
    return found


@dataclass
class ClusterProcesses:
    """The processes of one cluster; `config` is Dask's.

    Attributes:
        folder: where the client's output goes.
        keep_seconds, pause_seconds: of the workers, see `run_worker`.
        place: of the scheduler and the client.
    """

    folder: Path
    keep_seconds: float = 0.0
    pause_seconds: float = 0.0
    place: Place = Place()
    config: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    scheduler: ForkServerProcess | None = None
    workers: list[ForkServerProcess] = field(default_factory=list)
    _context: ForkServerContext = field(default_factory=fork_server)
    _started: list[ForkServerProcess] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"tcp://{self.place.host}:{self.port}"

    def start_scheduler(self) -> None:
        """At the same address again, if it had one."""
        self.port = self.port or _free_port()
        self.scheduler = self._start(run_scheduler, self.place, self.port, self.config)

    def start_worker(self, place: Place | None = None) -> ForkServerProcess:
        """One more."""
        settings = (self.address, self.config, self.keep_seconds, self.pause_seconds)
        self.workers.append(self._start(run_worker, place or self.place, *settings))
        return self.workers[-1]

    def start_client(self, *arguments: str) -> ForkServerProcess:
        """`streamsparse ARGUMENTS --scheduler ADDRESS`."""
        command = [*arguments, "--scheduler", self.address]
        return self._start(run_client, self.place, command, self.config, self.folder / "printed.txt")

    def printed(self) -> str:
        """By the latest client."""
        return (self.folder / "printed.txt").read_text()

    def _start(self, target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
        process = self._context.Process(target=target, args=arguments)
        process.start()
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        for process in self._started:
            kill(process)


@contextmanager
def cluster_processes(folder: Path, workers: int = 2, **options: Any) -> Iterator[ClusterProcesses]:
    """A scheduler and some workers beside it; all processes are killed in the end."""
    cluster = ClusterProcesses(folder, **options)
    try:
        cluster.start_scheduler()
        for _ in range(workers):
            cluster.start_worker()
        yield cluster
    finally:
        cluster.kill_all()


def kill(process: ForkServerProcess) -> None:
    """`kill -9`, and wait for the end."""
    process.kill()
    process.join(20)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
