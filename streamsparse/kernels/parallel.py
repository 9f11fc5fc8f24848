"""Work on the processor's threads: whole products side by side instead of each cut into slices.

A small product or copy that torch cuts over threads costs a wake-up of them each time; a layer's statistics are
hundreds of those. Here each thread runs whole jobs with torch's own threading off, and they meet once per block of
images. Results do not depend on which thread did what, or when: jobs add to numbers of their own, and what adds to
the same numbers takes turns.

As many threads as torch has (`torch.set_num_threads`); with one, on other devices, and for a single job, the
caller's thread runs everything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from threading import Barrier, local

import torch

Job = Callable[[], object]

Addition = Callable[[], object]
"""Adds numbers that were computed before to a sum."""


_own = local()


def job_threads(device: torch.device) -> int:
    """Threads that may be used from here; one of the pool has no others."""
    return torch.get_num_threads() if device.type == "cpu" and not hasattr(_own, "pool") else 1


def run_jobs(jobs: Sequence[Job], device: torch.device) -> None:
    """Run every job once, expensive ones best first; the first error is raised when all threads are done."""
    threads = min(job_threads(device), len(jobs))
    if threads <= 1:
        for job in jobs:
            job()
        return
    waiting = iter(jobs)

    def work() -> None:
        for job in waiting:  # shared: each job is taken once
            job()

    _finish([_submit(work, device) for _ in range(threads)])


def run_in_turns(tasks: Sequence[Callable[[], Iterable[Addition]]], device: torch.device) -> None:
    """Compute side by side, add in the order of the tasks.

    With one thread a task's additions are made one by one, as it yields them; with more, a thread holds those of
    its task until all tasks before it have added theirs.
    """
    if min(job_threads(device), len(tasks)) <= 1:
        for task in tasks:
            for addition in task():
                addition()
        return
    running: list[Future[None]] = []

    def work(task: Callable[[], Iterable[Addition]], before: Future[None] | None) -> None:
        additions = list(task())
        if before is not None:
            before.result()
        for addition in additions:
            addition()

    for task in tasks:
        running.append(_submit(partial(work, task, running[-1] if running else None), device))
    _finish(running)


def _submit(work: Job, device: torch.device) -> Future[None]:
    inference = torch.is_inference_mode_enabled()

    def run() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
            work()

    return _pool(job_threads(device), os.getpid()).submit(run)


def _finish(running: Sequence[Future[None]]) -> None:
    """Wait for all; the first error is raised."""
    errors = [error for error in (future.exception() for future in running) if error is not None]
    if errors:
        raise errors[0]


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads on which torch runs serially; one pool per process, for a forked child has none of its parent's."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=f"streamsparse-{process}")
    started = Barrier(threads)

    def start() -> None:
        _own.pool = process
        torch.get_num_threads()  # a thread's first parallel work would take the default, whatever was set before
        torch.set_num_threads(1)  # of this thread, and the default of those that begin later
        started.wait()

    for future in [pool.submit(start) for _ in range(threads)]:
        future.result()
    torch.set_num_threads(threads)  # the default again
    return pool
