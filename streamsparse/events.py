"""Progress events: stages report what they do, front ends decide how to show it.

A stage takes an `on_event` callable and calls it from its own thread; the command line draws progress
bars from the events, the service turns them into server-sent events, and a library user may ignore them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Started:
    """A piece of work begins. `total` counts `unit`s; None when it is not known."""

    stage: str
    total: int | None
    unit: str


@dataclass(frozen=True)
class Advanced:
    """`amount` more units are done."""

    stage: str
    amount: int


@dataclass(frozen=True)
class Finished:
    """The work is done and committed, after `seconds` of wall time."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Reused:
    """Committed work of an earlier call was found valid and kept."""

    stage: str
    what: str


@dataclass(frozen=True)
class Notice:
    """Something the user should know that does not stop the work."""

    stage: str
    message: str


Event = Started | Advanced | Finished | Reused | Notice
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """The default listener."""


@contextmanager
def reporting(stage: str, total: int | None, unit: str, on_event: OnEvent) -> Iterator[Callable[[int], None]]:
    """Report `stage` from start to finish; yields a function that advances it.

    An exception leaves the stage unfinished: no `Finished` event is sent.
    """
    started = perf_counter()
    on_event(Started(stage, total, unit))

    def advance(amount: int = 1) -> None:
        on_event(Advanced(stage, amount))

    yield advance
    on_event(Finished(stage, perf_counter() - started))
