"""How all axes of the report look, and the logarithmic ones count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from streamsparse.report.theme import Theme
from streamsparse.report.wording import SPACE, known, number, percent, printable, shorten

TEXT = 9.0
"""Points of ordinary text in a figure; `SMALL` of tick labels."""

SMALL = 8.0

_TINIEST = 1e-30
"""Logarithmic axes end here, and at its inverse: nothing that is measured lies beyond."""


def styled(axes: Axes, theme: Theme, *, x: str, y: str) -> Axes:
    """Plain axes: no box, a quiet grid, units on both axes; the vertical label lies flat above its axis."""
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.edge)
        axes.spines[side].set_linewidth(0.8)
    axes.grid(visible=True, color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.muted, labelsize=SMALL, length=2.5, width=0.7, color=theme.edge)
    axes.set_xlabel(drawable(x), color=theme.muted, fontsize=SMALL)
    axes.set_title(drawable(y), loc="left", color=theme.muted, fontsize=SMALL, pad=6)
    return axes


def headed(axes: Axes, theme: Theme, title: str) -> None:
    """Name one of many panels, above its axes."""
    axes.set_title(drawable(title), loc="left", color=theme.ink, fontsize=TEXT, fontweight="bold", pad=6)


def legend(canvas: Canvas, theme: Theme, columns: int) -> None:
    """Names of the series, in ink, under the axes, where no curve crosses them."""
    canvas.legend(
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=theme.ink,
        handlelength=2.4,
        columnspacing=1.6,
    )


def plain_axis(
    axis: Axis, words: Callable[[float], str] = number, *, ticks: int = 5, integer: bool = False
) -> None:
    """A linear axis with few round ticks."""
    axis.set_major_locator(MaxNLocator(ticks, integer=integer, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))


def log_axis(
    axes: Axes, which: Literal["x", "y"], limits: tuple[float, float], words: Callable[[float], str] = number
) -> None:
    """A logarithmic axis within `limits`, with labels between the decades when it spans less than one or so."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": limits})
    axis = axes.xaxis if which == "x" else axes.yaxis
    narrow = math.log10(limits[1] / limits[0]) < 2.3
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if narrow else LogLocator(numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))


def log_range(values: Iterable[float | None], margin: float = 1.3) -> tuple[float, float]:
    """Limits around the positive ones of `values`, at least a factor of 4 apart; (0.1, 1) without any."""
    positive = [value for value in values if value is not None and known(value) and value > 0]
    if not positive:
        return 0.1, 1.0
    low, high = max(min(positive), _TINIEST) / margin, min(max(positive), 1 / _TINIEST) * margin
    middle = math.sqrt(low * high)
    return min(low, middle / 2), max(high, middle * 2)


def floored(values: Iterable[float], floor: float) -> list[float]:
    """What a logarithmic axis can show: zeros (and round-off below zero) lie on its lower edge."""
    return [max(value, floor) for value in values]


def spans_decades(values: Iterable[float | None]) -> bool:
    """Whether a logarithmic axis shows them better: the positive ones differ by more than a factor of 30."""
    positive = [value for value in values if value is not None and known(value) and value > 0]
    return bool(positive) and max(positive) > 30 * min(positive)


def percent_tick(value: float) -> str:
    """A fraction as a tick label."""
    return percent(value).replace(f".0{SPACE}%", f"{SPACE}%")


def thinned(total: int, limit: int, always: Iterable[int] = ()) -> list[int]:
    """At most about `limit` indices, evenly spaced over `total`, the first, the last and `always` among them."""
    if total <= limit:
        return list(range(total))
    even = {round(number * (total - 1) / (limit - 1)) for number in range(limit)}
    return sorted(even | {index for index in always if 0 <= index < total})


def tip(text: str) -> str:
    """Marks an artist (`gid`) with the text that a pointer resting on it shows."""
    return f"tip {printable(text)}"


def drawable(text: str, letters: int = 80) -> str:
    """`text` in letters that the font has, the middle left out beyond `letters`."""
    return "".join(letter if ord(letter) in _letters() else "\u25a1" for letter in shorten(text, letters))


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
