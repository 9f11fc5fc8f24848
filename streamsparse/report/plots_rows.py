"""One line per layer, from top to bottom: bars on a linear axis, dots on a logarithmic one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.figure import Figure as Canvas

from streamsparse.report.plots_axes import SMALL, drawable, log_axis, log_range, plain_axis, styled, tip
from streamsparse.report.plots_figure import HALF
from streamsparse.report.theme import Theme
from streamsparse.report.wording import known, number

PAGEFUL = 60
"""Lines in one figure: more would not fit a printed page."""

_LETTERS = 30
_Line = TypeVar("_Line")


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        label: at its left; text: at its right, the value in words; tip: shown where a pointer rests.
        value: length of the filled bar, or place of the dot; None or not finite where it is not known.
        whole: length of the outlined bar behind it, or None.
    """

    label: str
    value: float | None
    whole: float | None
    text: str
    tip: str


def rows_size(rows: Sequence[Row]) -> tuple[float, float]:
    """Inches that so many lines take."""
    return HALF, 0.75 + 0.2 * len(rows)


def pagefuls(rows: Sequence[_Line]) -> list[tuple[_Line, ...]]:
    """The rows in equal parts of at most `PAGEFUL`."""
    parts = -(-len(rows) // PAGEFUL)
    length = -(-len(rows) // max(parts, 1))
    return [tuple(rows[start : start + length]) for start in range(0, len(rows), max(length, 1))]


def draw_bars(
    canvas: Canvas,
    theme: Theme,
    rows: Sequence[Row],
    *,
    axis: str,
    limit: float,
    words: Callable[[float], str],
) -> None:
    """Filled bars in front of outlined ones, on an axis from 0 to `limit` that all pages of a figure share."""
    axes = styled(canvas.subplots(), theme, x=axis, y="")
    for place, row in enumerate(rows):
        if row.whole is not None and known(row.whole):
            axes.barh(place, row.whole, 0.72, facecolor=theme.fill, edgecolor=theme.edge, linewidth=0.8)
        if row.value is not None and known(row.value):
            axes.barh(place, row.value, 0.72, facecolor=theme.blue, gid=tip(row.tip))
    low = min([0.0, *(row.value for row in rows if row.value is not None and known(row.value))])
    axes.set_xlim(1.08 * low, limit if limit > 0 else 1.0)
    plain_axis(axes.xaxis, words)
    _lines(canvas, theme, rows)


def draw_dots(
    canvas: Canvas,
    theme: Theme,
    rows: Sequence[Row],
    *,
    axis: str,
    limits: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    words: Callable[[float], str] = number,
) -> None:
    """Dots on a logarithmic axis; `mark` is a vertical line with its name."""
    axes = styled(canvas.subplots(), theme, x=axis, y="")
    low, high = limits or log_range(row.value for row in rows)
    log_axis(axes, "x", (low, high), words)
    for place, row in enumerate(rows):
        if row.value is not None and known(row.value):
            value = min(max(row.value, low), high)
            axes.plot([low, value], [place, place], color=theme.edge, linewidth=0.8)
            axes.plot(value, place, "o", color=theme.blue, markersize=5, clip_on=False, gid=tip(row.tip))
    if mark is not None and low < mark[0] < high:
        axes.axvline(mark[0], color=theme.orange, linewidth=1.2, linestyle="--")
        axes.annotate(
            mark[1],
            (mark[0], 1),
            (3, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=theme.orange,
            fontsize=SMALL,
        )
    _lines(canvas, theme, rows)


def limit_of(rows: Sequence[Row]) -> float:
    """Right end of an axis for all of `rows`."""
    lengths = [length for row in rows for length in (row.value, row.whole) if length is not None and known(length)]
    return 1.02 * max(lengths, default=1.0)


def missing_text(value: float | None, words: Callable[[float], str] = number) -> str:
    """The value in words, or a dash."""
    return words(value) if value is not None and known(value) else "–"


def _lines(canvas: Canvas, theme: Theme, rows: Sequence[Row]) -> None:
    """Names at the left, values in words at the right."""
    axes = canvas.axes[0]
    places = range(len(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(places, [drawable(row.label, _LETTERS) for row in rows], color=theme.ink)
    axes.tick_params(axis="y", labelsize=SMALL - 1.0 if max(len(row.label) for row in rows) > 16 else SMALL)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    values = axes.secondary_yaxis("right")
    values.set_facecolor("none")
    values.set_yticks(places, [drawable(row.text, 40) for row in rows])
    values.tick_params(length=0, labelsize=SMALL, labelcolor=theme.ink)
    values.spines["right"].set_visible(False)
