"""The paper's method at work on a group: the alternation converges, w becomes sparse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from streamsparse.report.facts import Facts, Walk
from streamsparse.report.plots_axes import (
    SMALL,
    legend,
    log_axis,
    log_range,
    plain_axis,
    spans_decades,
    styled,
)
from streamsparse.report.plots_figure import HALF, Figure, slug
from streamsparse.report.theme import HEAT, Theme
from streamsparse.report.wording import compact, count, known, number

WALKS = 12
"""Most groups whose walk is drawn."""

_DECADES_OF_W = 4.0


def method_figures(facts: Facts) -> list[Figure]:
    """Of every walk: what is left of L in the alternation, plain and accelerated, and w along the path."""
    found = []
    for place, walk in enumerate(facts.walks[:WALKS]):
        if max(len(_finite(walk.losses)), len(_finite(walk.accelerated_losses))) > 1:
            found.append(_convergence(place, walk))
        if len(walk.steps) > 1:
            found.append(_sparsification(place, walk))
    return found


def _finite(losses: Sequence[float]) -> list[float]:
    return [loss for loss in losses if known(loss)]


def _convergence(place: int, walk: Walk) -> Figure:
    plain, accelerated = _finite(walk.losses), _finite(walk.accelerated_losses)
    title = f"{walk.group}: the alternation stops after {count(max(len(plain), len(accelerated)))} iterations"
    if plain and accelerated:
        ours, theirs = count(len(accelerated)), count(len(plain))
        title = f"{walk.group}: accelerated, the alternation stops after {ours} iterations; plain, after {theirs}"
    ends = [
        f"{name}: {count(len(losses))} iterations from {number(losses[0])} to {number(losses[-1])}"
        for name, losses in (("plain", plain), ("accelerated", accelerated))
        if losses
    ]
    caption = (
        f"L(w, Λ) of each run above its own last value, from uniform w, at ε_L2 = {number(walk.eps_l2)} and ε_H "
        f"= {number(walk.eps_h)}. Every iteration lowers L. The two may end in different minima: the legend says "
        "where. A run that was cut short before it converged bends down at its end."
    )
    draw = partial(_draw_convergence, series=(plain, accelerated))
    alt = f"Loss falling over iterations. {'; '.join(ends)}."
    name = f"convergence-{place + 1}-{slug(walk.group)}"
    return Figure(name, title, alt, caption, draw, (HALF, 3.1), "method")


def _draw_convergence(canvas: Canvas, theme: Theme, *, series: tuple[list[float], list[float]]) -> None:
    axes = styled(canvas.subplots(), theme, x="iteration", y="L above its last value")
    plain, accelerated = series
    shown = [_gaps(losses) for losses in series]
    low, high = log_range([gap for points in shown for _, gap in points])
    log_axis(axes, "y", (low, high))
    longest = max(len(plain), len(accelerated))
    if longest > 30 * max(1, min(len(plain), len(accelerated))) or longest > 200:
        log_axis(axes, "x", (0.9, 1.1 * max(longest, 2)), compact)
    else:
        axes.set_xlim(0, longest + 1)
        plain_axis(axes.xaxis, compact, integer=True)
    styles = (("plain", theme.orange, "--", "s"), ("accelerated", theme.blue, "-", "o"))
    for losses, points, (name, colour, line, marker) in zip(series, shown, styles, strict=True):
        if points:
            name = f"{name}, to {losses[-1]:.5g}"
            steps, gaps = zip(*points, strict=True)
            axes.plot(
                steps, gaps, color=colour, linestyle=line, linewidth=1.6, label=name, marker=marker, markersize=4,
                markevery=[len(points) - 1],
            )  # fmt: skip
    if any(shown):
        legend(canvas, theme, 2)


def _gaps(losses: list[float]) -> list[tuple[int, float]]:
    """(iteration, loss above the last one), while that is more than round-off."""
    round_off = 4 * float(np.finfo(np.float64).eps) * max((abs(loss) for loss in losses), default=0.0)
    return [(step, loss - losses[-1]) for step, loss in enumerate(losses, start=1) if loss - losses[-1] > round_off]


def _sparsification(place: int, walk: Walk) -> Figure:
    channels = len(walk.steps[0].w)
    first, last = walk.steps[0].support, walk.steps[-1].support
    title = f"{walk.group}: from {first} to {last} of {channels} channels in {len(walk.steps)} steps"
    alt = (
        f"Heat map of w, {channels} channels by {len(walk.steps)} steps, above curves of the channels left and "
        f"of both ε. Channels with w above zero: {first} at first, {last} at last."
    )
    caption = (
        "Each line is a channel, in the order in which they leave; the darker, the larger its w (logarithmic, "
        f"over {_DECADES_OF_W:.0f} decades); blank: it has left. Below: channels with w > 0, and the ε of each "
        "step."
    )
    draw = partial(_draw_sparsification, walk=walk)
    name = f"sparsification-{place + 1}-{slug(walk.group)}"
    return Figure(name, title, alt, caption, draw, (HALF, 4.8), "method")


def _draw_sparsification(canvas: Canvas, theme: Theme, *, walk: Walk) -> None:
    heat, support, strengths = canvas.subplots(3, 1, sharex=True, height_ratios=(3.0, 1.1, 1.1))
    steps = np.arange(1, len(walk.steps) + 1)
    styled(heat, theme, x="", y="channels, those that stay longest on top")
    heat.grid(visible=False)
    colours = _colours(np.array([step.w for step in walk.steps], dtype=np.float64))
    edges = (0.5, len(steps) + 0.5, colours.shape[0], 0)
    heat.imshow(colours, aspect="auto", interpolation="nearest", extent=edges)
    heat.tick_params(labelbottom=False)
    plain_axis(heat.yaxis, count, integer=True)
    styled(support, theme, x="", y="channels with w > 0")
    support.step(steps, [step.support for step in walk.steps], where="mid", color=theme.blue, linewidth=1.6)
    support.set_ylim(0, 1.08 * max(1, *(step.support for step in walk.steps)))
    plain_axis(support.yaxis, count, ticks=3, integer=True)
    support.tick_params(labelbottom=False)
    styled(strengths, theme, x="step of the walk", y="ε_L2 (line) and ε_H (dashes)")
    _draw_strengths(strengths, theme, steps, walk)
    plain_axis(strengths.xaxis, count, integer=True)


def _draw_strengths(axes: Axes, theme: Theme, steps: NDArray[np.int_], walk: Walk) -> None:
    """Both ε of every step; zeros lie on the axis."""
    ridge, entropy = [step.eps_l2 for step in walk.steps], [step.eps_h for step in walk.steps]
    low, high = log_range([*ridge, *entropy])
    if spans_decades([*ridge, *entropy]):
        log_axis(axes, "y", (low, high))
    else:
        low = 0.0
        axes.set_ylim(0, high)
        plain_axis(axes.yaxis, ticks=3)
    for values, colour, line in ((ridge, theme.orange, "-"), (entropy, theme.purple, "--")):
        axes.plot(steps, np.maximum(values, low), color=colour, linestyle=line, linewidth=1.4)
    axes.tick_params(axis="y", labelsize=SMALL - 0.5)


def _colours(w: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(steps, channels) → (channels, steps, 4): one hue, as opaque as log w is large; sorted by when one leaves."""
    w = np.nan_to_num(w, nan=0.0)
    last = np.where(w > 0, np.arange(1, len(w) + 1)[:, None], 0).max(axis=0)
    order = np.lexsort((-w.sum(axis=0), -last))
    top = w.max()
    with np.errstate(divide="ignore"):
        depth = np.log10(w / top) if top > 0 else np.full_like(w, -np.inf)
    opacity = np.where(w > 0, 0.15 + 0.85 * np.clip(1 + depth / _DECADES_OF_W, 0, 1), 0.0)
    colours = np.empty((w.shape[1], w.shape[0], 4), dtype=np.uint8)
    colours[..., :3] = np.round(255 * np.array(to_rgb(HEAT))).astype(np.uint8)
    colours[..., 3] = np.round(255 * opacity.T[order]).astype(np.uint8)
    return colours
