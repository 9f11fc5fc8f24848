"""Predicted against measured error of every layer."""

from __future__ import annotations

import math
from functools import partial
from statistics import median

from matplotlib.figure import Figure as Canvas

from streamsparse.report.facts import Facts
from streamsparse.report.plots_axes import SMALL, drawable, log_axis, log_range, percent_tick, styled, tip
from streamsparse.report.plots_figure import HALF, Figure
from streamsparse.report.theme import Theme
from streamsparse.report.wording import known, number, percent

_LABELS = 5
_CLOSE = 2.0

Pair = tuple[str, float, float]
"""Layer, predicted and measured relative error."""


def error_figures(facts: Facts) -> list[Figure]:
    """A dot per layer, where both errors are known and positive."""
    pairs = [
        (layer.report.layer, layer.report.held_out_error, layer.measured_error)
        for layer in facts.layers
        if layer.report.held_out_error is not None and layer.measured_error is not None
    ]
    shown: list[Pair] = [pair for pair in pairs if known(pair[1]) and known(pair[2]) and min(pair[1:]) > 0]
    if not shown:
        return []
    ratios = [measured / predicted for _, predicted, measured in shown]
    close = sum(1 / _CLOSE <= ratio <= _CLOSE for ratio in ratios)
    title = f"Measured errors are {number(median(ratios))} times the predicted ones in the median"
    layer, predicted, measured = max(shown, key=_distance)
    alt = (
        f"Scatter of {len(shown)} layers: {close} measured errors are within a factor of {number(_CLOSE)} of the "
        f"predicted. Furthest: {layer}, predicted {percent(predicted)}, measured {percent(measured)}."
    )
    caption = (
        "Each dot is a layer: across, the held-out relative error that the statistics predict for it alone; up, "
        "the "
        "relative error of its output in the pruned network on the images of evaluation, where errors of the "
        "layers "
        "before add up. On the line both are equal; between the dotted lines they differ by less than a factor of "
        f"{number(_CLOSE)}."
    )
    return [Figure("errors", title, alt, caption, partial(_draw, pairs=shown), (HALF, 4.4), "errors")]


def _distance(pair: Pair) -> float:
    """How far from the identity, in factors of e."""
    return abs(math.log(pair[2] / pair[1]))


def _draw(canvas: Canvas, theme: Theme, *, pairs: list[Pair]) -> None:
    axes = styled(canvas.subplots(), theme, x="predicted relative error", y="measured relative error")
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
    furthest = sorted(pairs, key=_distance, reverse=True)[:_LABELS]
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
