"""Predicted against measured error of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import median

from matplotlib.figure import Figure as Canvas

from streamsparse.report.facts import Facts
from streamsparse.report.plots_axes import SMALL, drawable, log_axis, log_range, percent_tick, styled, tip
from streamsparse.report.plots_figure import HALF, Figure
from streamsparse.report.plots_rows import Row, draw_dots, pagefuls
from streamsparse.report.theme import Theme
from streamsparse.report.wording import known, number, percent

_LABELS = 5
_CLOSE = 2.0

Pair = tuple[str, float, float]
"""Layer, predicted and measured relative error."""


def error_figures(facts: Facts) -> list[Figure]:
    """A dot per layer that lost inputs, where both errors are known and positive; others have round-off alone."""
    pairs = [
        (layer.report.layer, layer.report.held_out_error, layer.measured_error)
        for layer in facts.layers
        if layer.report.held_out_error is not None
        and layer.measured_error is not None
        and layer.report.inputs_kept < layer.report.inputs
    ]
    shown: list[Pair] = [pair for pair in pairs if known(pair[1]) and known(pair[2]) and min(pair[1:]) > 0]
    if not shown:
        return []
    ratios = [measured / predicted for _, predicted, measured in shown]
    close = sum(1 / _CLOSE <= ratio <= _CLOSE for ratio in ratios)
    times = number(median(ratios))
    title = f"Measured errors are {'' if times == '1' else f'{times} times '}the predicted ones in the median"
    layer, predicted, measured = max(shown, key=_distance)
    alt = (
        f"Scatter of {len(shown)} layers: {close} measured errors are within a factor of {number(_CLOSE)} of the "
        f"predicted. Furthest: {layer}, predicted {percent(predicted)}, measured {percent(measured)}."
    )
    caption = (
        "Each dot is a layer that lost inputs: across, the held-out relative squared error that the statistics "
        f"predict {_predicted_for(facts.mode)}; up, that of its output in the pruned network on the images of "
        "evaluation, where errors of the layers before add up. On the line both are equal; between the dotted "
        f"lines they differ by less than a factor of {number(_CLOSE)}."
    )
    scatter = Figure("errors", title, alt, caption, partial(_draw, pairs=shown), (HALF, 4.4), "errors")
    return [scatter, *_by_layer(shown)]


def _predicted_for(mode: str | None) -> str:
    """A sequential refit predicts from what the pruned layers before give, so that their errors are in it."""
    return "behind the pruned layers before it" if mode == "sequential" else "for it alone"


def _by_layer(pairs: Sequence[Pair]) -> list[Figure]:
    """Both errors of every layer on a line."""
    worst = max(pairs, key=lambda pair: pair[2])
    title = f"{worst[0]} has the largest measured error: {percent(worst[2])}"
    caption = "Square: predicted from the statistics. Dot: measured in the pruned network. Layers that lost inputs."
    pages = pagefuls(pairs)
    limits = log_range([error for pair in pairs for error in pair[1:]])
    found = []
    for place, page in enumerate(pages, start=1):
        part = f"-{place}" if len(pages) > 1 else ""
        alt = "; ".join(f"{name}: predicted {percent(one)}, measured {percent(other)}" for name, one, other in page)
        draw = partial(_draw_by_layer, pairs=page, limits=limits)
        size = (HALF, 0.75 + 0.2 * len(page))
        found.append(Figure(f"layer-errors{part}", title, f"{alt}.", caption, draw, size, "errors"))
    return found


def _draw_by_layer(canvas: Canvas, theme: Theme, *, pairs: Sequence[Pair], limits: tuple[float, float]) -> None:
    rows = [Row(name, None, None, percent(measured), "") for name, _, measured in pairs]
    draw_dots(canvas, theme, rows, axis="relative squared error", limits=limits, words=percent_tick)
    axes = canvas.axes[0]
    for place, (name, predicted, measured) in enumerate(pairs):
        words = tip(f"{name}: predicted {percent(predicted)}, measured {percent(measured)}")
        axes.plot([predicted, measured], [place, place], color=theme.edge, linewidth=1.2)
        axes.plot(predicted, place, "s", color=theme.paper, markeredgecolor=theme.orange, markersize=5.5, gid=words)
        axes.plot(measured, place, "o", color=theme.blue, markersize=5, gid=words)


def _distance(pair: Pair) -> float:
    """How far from the identity, in factors of e."""
    return abs(math.log(pair[2] / pair[1]))


def _draw(canvas: Canvas, theme: Theme, *, pairs: list[Pair]) -> None:
    axes = styled(
        canvas.subplots(), theme, x="predicted relative squared error", y="measured relative squared error"
    )
    low, high = log_range([error for pair in pairs for error in pair[1:]])
    log_axis(axes, "x", (low, high), percent_tick)
    log_axis(axes, "y", (low, high), percent_tick)
    axes.plot([low, high], [low, high], color=theme.edge, linewidth=1.2)
    for factor in (_CLOSE, 1 / _CLOSE):
        axes.plot([low, high], [low * factor, high * factor], color=theme.edge, linewidth=0.9, linestyle=":")
    for layer, predicted, measured in pairs:
        words = f"{layer}: predicted {percent(predicted)}, measured {percent(measured)}"
        axes.plot(predicted, measured, "o", color=theme.blue, markersize=5.5, gid=tip(words))
    middle = math.sqrt(low * high)
    far = [pair for pair in pairs if len(pairs) < _LABELS or _distance(pair) > math.log(_CLOSE)]
    furthest = sorted(far, key=_distance, reverse=True)[:_LABELS]
    for place, (layer, predicted, measured) in enumerate(sorted(furthest, key=lambda pair: pair[2])):
        left = predicted > middle
        axes.annotate(
            drawable(layer, 22),
            (predicted, measured),
            (-7 if left else 7, 5 if place % 2 else -9),
            textcoords="offset points",
            ha="right" if left else "left",
            color=theme.ink,
            fontsize=SMALL,
        )
