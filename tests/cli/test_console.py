"""What the user sees of long work."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.progress import Progress

from streamsparse.cli.console import ProgressBars
from streamsparse.events import Advanced, Finished, Notice, Started


def test_a_stage_that_comes_again_goes_on_in_its_bar() -> None:
    """A refit of many networks, or in many passes, must not fill the screen with finished bars."""
    seconds = iter(range(100))
    progress = Progress(console=Console(file=StringIO()), get_time=lambda: float(next(seconds)))
    bars = ProgressBars(progress)
    for total in (3, 0, 4):
        bars(Started("refit", total, "layers"))
        for _ in range(total):
            bars(Advanced("refit", 1))
        bars(Finished("refit", 2.5))
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total) == ("refit", 7, 7)
    assert task.finished
    whole, still = task.elapsed, task.elapsed
    assert whole == still
    assert whole is not None
    assert whole > 7
    assert bars.seconds == {"refit": 7.5}


def test_a_bar_that_begins_again_is_not_finished() -> None:
    progress = Progress(console=Console(file=StringIO()))
    bars = ProgressBars(progress)
    for total in (2, 2):
        bars(Started("capture", total, "images"))
        bars(Advanced("capture", total))
        bars(Finished("capture", 0.1))
    bars(Started("capture", 6, "images"))
    (task,) = progress.tasks
    assert not task.finished
    assert task.stop_time is None
    assert task.percentage == 40
    bars(Started("wait", None, "seconds"))
    bars(Advanced("wait", 5))
    bars(Started("wait", None, "seconds"))
    assert (progress.tasks[1].completed, progress.tasks[1].total) == (5, None)


def test_what_is_passed_over_gets_no_bar_and_notices_are_printed() -> None:
    out = StringIO()
    progress = Progress(console=Console(file=out))
    bars = ProgressBars(progress)
    bars(Started("capture", 0, "images"))
    bars(Advanced("capture", 1))
    bars(Finished("capture", 0.0))
    bars(Notice("capture", "all images were there"))
    assert not progress.tasks
    assert out.getvalue() == "capture: all images were there\n"
