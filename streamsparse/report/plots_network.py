"""Figures of the whole network: what each budget would cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from streamsparse.report.facts import Facts, NetworkPoint
from streamsparse.report.plots_axes import (
    SMALL,
    floored,
    legend,
    log_axis,
    log_range,
    plain_axis,
    spans_decades,
    styled,
    thinned,
    tip,
)
from streamsparse.report.plots_figure import HALF, Figure
from streamsparse.report.theme import Theme
from streamsparse.report.wording import compact, fewer, known, number
from streamsparse.types import Costs

_MARKERS_AT_MOST = 120
_AXES_POINTS = 310
"""Width of the axes, about: the layout is settled after the labels are."""


@dataclass(frozen=True)
class _Cost:
    """One horizontal axis of the Pareto curve."""

    key: str
    words: str
    of: Callable[[Costs], int]


_COSTS = (
    _Cost("parameters", "parameters", lambda costs: costs.parameters),
    _Cost("macs", "multiply-accumulates per image", lambda costs: costs.macs),
)


def pareto_figures(facts: Facts) -> list[Figure]:
    """Predicted loss against parameters, and against multiply-accumulates."""
    points = [point for point in facts.points if known(point.predicted_loss)]
    if len(points) < 2:
        return []
    return [_pareto(facts, points, cost) for cost in _COSTS]


def _pareto(facts: Facts, points: list[NetworkPoint], cost: _Cost) -> Figure:
    chosen = _chosen(facts)
    smallest, largest = points[0], points[-1]
    title = f"Predicted loss against {cost.words}"
    alt = (
        f"Curve of {len(points)} networks: from {compact(cost.of(smallest.costs))} {cost.words} at a predicted "
        f"loss of {number(smallest.predicted_loss)} {facts.loss_unit} to {compact(cost.of(largest.costs))} at "
        f"{number(largest.predicted_loss)}."
    )
    if chosen is not None:
        cut = fewer(cost.of(facts.original), cost.of(chosen.costs))
        loss = f"{number(chosen.predicted_loss)} {facts.loss_unit}"
        title = f"Chosen: {cut} {cost.words} for a predicted loss of {loss}"
        alt += f" Chosen: {compact(cost.of(chosen.costs))} at {number(chosen.predicted_loss)}."
    alt += f" The original has {compact(cost.of(facts.original))}."
    caption = (
        "Every dot is a network that a budget can ask for; lower and further left is better. The loss is the "
        f"allocation's prediction, about the sum of what each group's cut costs alone, in {facts.loss_unit}. "
        "A loss of zero lies on the axis."
    )
    if chosen is not None and _measured_loss(facts) is not None:
        caption += " Cross: as evaluation measured the pruned network."
    draw = partial(_draw_pareto, facts=facts, points=points, chosen=chosen, cost=cost)
    return Figure(f"pareto-{cost.key}", title, alt, caption, draw, (HALF, 3.6), "network")


def _chosen(facts: Facts) -> NetworkPoint | None:
    """The pruned network, on the front or above it."""
    if facts.pruned is None:
        return None
    losses = [
        facts.predicted_loss,
        *(point.predicted_loss for point in facts.points if point.costs == facts.pruned),
    ]
    return next((NetworkPoint(facts.pruned, loss) for loss in losses if loss is not None and known(loss)), None)


def _draw_pareto(
    canvas: Canvas,
    theme: Theme,
    *,
    facts: Facts,
    points: list[NetworkPoint],
    chosen: NetworkPoint | None,
    cost: _Cost,
) -> None:
    axes = styled(canvas.subplots(), theme, x=cost.words, y=f"predicted loss ({facts.loss_unit})")
    ordered = sorted(points, key=lambda point: cost.of(point.costs))
    costs = [float(cost.of(point.costs)) for point in ordered]
    original = float(cost.of(facts.original))
    losses = [point.predicted_loss for point in ordered]
    marked = (None if chosen is None else chosen.predicted_loss, _measured_loss(facts))
    floor = _loss_axis(axes, [*losses, *(loss for loss in marked if loss is not None)])
    heights = floored(losses, floor)
    if spans_decades([*costs, original]):
        limits = log_range([*costs, original])
        costs = floored(costs, limits[0])
        log_axis(axes, "x", limits, compact)
    else:
        axes.set_xlim(0, 1.06 * max([*costs, original]))
        plain_axis(axes.xaxis, compact)
    axes.plot(*_lower_edge(costs, heights), color=theme.blue, linewidth=1.4)
    for index in thinned(len(ordered), _MARKERS_AT_MOST):
        words = f"{compact(costs[index])} {cost.words}: {number(losses[index])} {facts.loss_unit}"
        axes.plot(
            costs[index], heights[index], "o", color=theme.blue, markersize=2.6, clip_on=False, gid=tip(words)
        )
    axes.plot(original, floor, "D", label="original, of loss 0", **_outlined(theme.muted))
    legend(canvas, theme, 1)  # beside the marker, its name would hide the end of the curve
    if chosen is not None:
        across = max(float(cost.of(chosen.costs)), axes.get_xlim()[0])
        words = f"chosen: {compact(cost.of(chosen.costs))}, {number(chosen.predicted_loss)}"
        measured = _measured_loss(facts)
        place = (across, max(chosen.predicted_loss, floor))
        more = measured is not None and measured > chosen.predicted_loss
        _mark(axes, theme, place, ("o", theme.orange), words, above=None if measured is None else not more)
        if measured is not None:
            place = (across, max(measured, floor))
            _mark(axes, theme, place, ("X", theme.green), f"measured: {number(measured)}", above=more)


def _mark(
    axes: Axes, theme: Theme, place: tuple[float, float], look: tuple[str, str], words: str, *, above: bool | None
) -> None:
    """An outlined marker with its name: at its right, or where that is too narrow, `above` the curve or below.

    Of two with one cost, the one that is not `above` has its name at its left, where there is room: as the curve
    falls, there is nothing below it, and the names do not meet.
    """
    marker, colour = look
    axes.plot(*place, marker, **_outlined(colour))
    across, up = axes.transAxes.inverted().transform(axes.transData.transform(place))
    width = 5.4 * len(words)  # a letter in bold takes about 5.4 points
    fits = (1 - across) * _AXES_POINTS > width and (above is not False or across * _AXES_POINTS < width + 9)
    low = up < 0.1  # there, a name below would meet the axis
    if fits:
        offset = (9, 6 if above is not False or low else -13)
    else:
        offset = (2, 20 if low else 9) if above else (-9, 5 if low else -10)
    label = axes.annotate(
        words,
        (1.0, place[1]) if above and not fits else place,
        offset,
        xycoords=("axes fraction", "data") if above and not fits else "data",
        textcoords="offset points",
        ha="left" if fits else "right",
        color=theme.ink,
        fontsize=SMALL,
        fontweight="bold",
    )
    label.set_bbox({"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0})  # the curve stays behind it
    label.set_in_layout(False)


def _outlined(colour: str) -> dict[str, Any]:
    """Of a marker that lets the curve be seen."""
    return {
        "color": "none", "markeredgecolor": colour, "markersize": 9, "markeredgewidth": 2, "clip_on": False,
    }  # fmt: skip


def _measured_loss(facts: Facts) -> float | None:
    """The divergence that `evaluate` measured, when it is in the unit of the curve."""
    own = facts.own_measurement
    if own is None or not facts.loss_unit.startswith("nats") or not known(own.divergence):
        return None
    return own.divergence


def _loss_axis(axes: Axes, losses: list[float]) -> float:
    """The vertical axis; returns its lower edge, where a loss of zero is drawn."""
    if spans_decades(losses):
        low, high = log_range(losses)
        log_axis(axes, "y", (low, high))
        return low
    highest = max(losses)
    axes.set_ylim(0, 1.1 * highest if highest > 0 else 1.0)
    plain_axis(axes.yaxis)
    return 0.0


def _lower_edge(costs: list[float], losses: list[float]) -> tuple[list[float], list[float]]:
    """The points that none of lower cost beats: along another cost, a front is not one everywhere."""
    best = float("inf")
    edge = []
    for cost, loss in zip(costs, losses, strict=True):
        if loss < best:
            edge.append((cost, loss))
            best = loss
    return [cost for cost, _ in edge], [loss for _, loss in edge]
