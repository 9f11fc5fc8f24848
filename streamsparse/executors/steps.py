"""Steps: what every executor runs, and what may run only after what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Report = Callable[[int], None]
"""Called with amounts of progress, from wherever the work is done."""


@dataclass(frozen=True)
class Step:
    """One call of `work(item, report)`.

    Attributes:
        key: names the step.
        work, item: picklable for executors of other processes.
        after: keys of steps, earlier in the sequence, that must be done before.
    """

    key: str
    work: Callable[[Any, Report], None]
    item: Any
    after: tuple[str, ...] = ()


class Executor(Protocol):
    """Runs steps and yields each when it is done.

    Attributes:
        name: for messages; "dask" works in other processes.
        workers: steps under way at the same time.
        tasks_per_process: of which so many share a process.
    """

    name: str
    workers: int
    tasks_per_process: int

    def process_bytes(self, module: str) -> int:
        """What a worker's process holds before it works, with the module imported that its work is in."""
        ...

    def memory_limit_bytes(self) -> int | None:
        """Of a worker's process, where the executor knows of one."""
        ...

    def run(self, steps: Sequence[Step], report: Report) -> Iterator[Step]:
        """`report` is called in the caller's thread, whoever works."""
        ...
