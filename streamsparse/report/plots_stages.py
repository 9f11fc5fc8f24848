"""Figures of what every stage took."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure as Canvas

from streamsparse.report.facts import Facts
from streamsparse.report.plots_figure import Figure
from streamsparse.report.plots_rows import Row, draw_bars, limit_of, rows_size
from streamsparse.report.theme import Theme
from streamsparse.report.wording import duration, known, number, percent, size


def stage_figures(facts: Facts) -> list[Figure]:
    """Wall time and largest memory of every stage."""
    timed = [stage for stage in facts.stages if known(stage.seconds)]
    found = []
    if timed:
        total = sum(stage.seconds for stage in timed)
        longest = max(timed, key=lambda stage: stage.seconds)
        rows = tuple(
            Row(s.stage, s.seconds, None, duration(s.seconds), f"{s.stage}: {duration(s.seconds)}") for s in timed
        )
        share = percent(longest.seconds / total) if total > 0 else "all"
        title = f"Of {duration(total)}, {longest.stage} takes {share}"
        found.append(_stage_bars("seconds", title, "Wall time of the last run of each stage.", rows, duration))
    measured = [stage for stage in facts.stages if stage.peak_bytes is not None]
    if measured:
        sizes = [(stage.stage, float(stage.peak_bytes or 0)) for stage in measured]
        rows = tuple(Row(name, bytes_, None, size(bytes_), f"{name}: {size(bytes_)}") for name, bytes_ in sizes)
        name, largest = max(sizes, key=lambda item: item[1])
        title = f"No stage needs more than {size(largest)} of memory ({name})"
        caption = "Largest resident memory of the stage's process."
        found.append(_stage_bars("memory", title, caption, rows, size))
    return found


def _stage_bars(
    name: str, title: str, caption: str, rows: tuple[Row, ...], words: Callable[[float], str]
) -> Figure:
    label = {"seconds": "wall time (seconds)", "memory": "largest resident memory (bytes)"}[name]
    ticks = number if name == "seconds" else words
    draw = partial(_draw_rows, rows=rows, axis=label, words=ticks)
    alt = f"Bars, one per stage: {', '.join(row.tip for row in rows)}."
    return Figure(f"stages-{name}", title, alt, caption, draw, rows_size(rows), "time")


def _draw_rows(
    canvas: Canvas, theme: Theme, *, rows: tuple[Row, ...], axis: str, words: Callable[[float], str]
) -> None:
    draw_bars(canvas, theme, rows, axis=axis, limit=limit_of(rows), words=words)
