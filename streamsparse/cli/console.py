"""What the user sees: progress bars and errors on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from streamsparse.errors import StreamsparseError
from streamsparse.events import Advanced, Event, Finished, Notice, OnEvent, Reused, Started

INTERRUPTED_STATUS = 130


class ProgressBars:
    """One bar per stage, in which it goes on when it comes again; also the seconds of every finished stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started(stage, total, unit):
                if stage in self._bars:
                    self._begin_again(self._bars[stage], total)
                elif total != 0:
                    self._bars[stage] = self._progress.add_task(stage, total=total, unit=unit)
            case Advanced(stage, amount) if stage in self._bars:
                self._progress.advance(self._bars[stage], amount)
            case Finished(stage, seconds):
                self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
                if stage in self._bars:
                    self._progress.stop_task(self._bars[stage])
            case Reused(stage, what):
                self._progress.console.print(f"{stage}: reused {what}", style="dim", highlight=False)
            case Notice(stage, message):
                self._progress.console.print(f"{stage}: {message}", style="yellow", highlight=False)
            case _:
                pass

    def _begin_again(self, bar: TaskID, more: int | None) -> None:
        """The totals are added up where both are known; the clock runs on."""
        task = next(task for task in self._progress.tasks if task.id == bar)
        task.stop_time = None
        if more is not None and task.total is not None:
            self._progress.update(bar, total=task.total + more)


@contextmanager
def command(as_json: bool = False) -> Iterator[ProgressBars]:
    """Run the body of a command: progress while it works, errors as text (and JSON), the right exit status."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console) as progress:
            yield ProgressBars(progress)
    except StreamsparseError as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False)
        if as_json:
            print_json(error.to_json())
        raise typer.Exit(error.exit_status) from error
    except KeyboardInterrupt:
        console.print("Interrupted. What was committed is kept: the same command resumes.", style="yellow")
        raise typer.Exit(INTERRUPTED_STATUS) from None


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(_plain(value), allow_nan=False))
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def print_table(title: str, columns: Mapping[str, str], rows: Sequence[tuple[object, ...]]) -> None:
    """A table on standard output.

    Args:
        title: above it.
        columns: heading -> "left" or "right".
        rows: one entry per column.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading, side in columns.items():
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def print_renderables(renderables: Iterable[RenderableType]) -> None:
    """Tables and the like on standard output, one after the other."""
    console = Console()
    for one in renderables:
        console.print(one)


def say(text: str) -> None:
    """A line of text on standard output."""
    typer.echo(text)


def size_text(count: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


__all__ = [
    "OnEvent",
    "ProgressBars",
    "command",
    "print_json",
    "print_renderables",
    "print_table",
    "say",
    "size_text",
]
