"""Small multiples, one panel per channel group: the path of supports, and the network's sensitivity to each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from streamsparse.report.facts import Facts, FrontPoint, GroupFacts
from streamsparse.report.plots_axes import (
    SMALL,
    drawable,
    floored,
    headed,
    legend,
    log_axis,
    log_range,
    percent_tick,
    plain_axis,
    styled,
    thinned,
)
from streamsparse.report.plots_figure import WHOLE, Figure
from streamsparse.report.theme import Theme
from streamsparse.report.wording import count, known, number, percent, shorten

PANELS = 18
"""Most panels of one figure: more would not fit a printed page."""

_COLUMNS = 3
_SMALLEST_ERROR = 1e-5  # what lies below is round-off and ridge
_TINY = 1e-30  # in place of losses of zero, in logarithms
_MARKERS_AT_MOST = 36
_STYLES = {
    "entropic": ("o", "blue"),
    "elimination": ("s", "orange"),
    "exchange": ("^", "green"),
    "trivial": (".", "muted"),  # all channels, or none
}
_FURTHER = (("D", "purple"), ("v", "blue"), ("P", "orange"), ("X", "green"), ("*", "purple"))

DrawPanel = Callable[[Axes, GroupFacts], None]


def path_figures(facts: Facts) -> list[Figure]:
    """Error of the best support of every count, by the method that found it."""
    groups = [group for group in facts.groups if any(_error(point) for point in group.front)]
    if not groups:
        return []
    shown = _worth_showing(groups)
    chosen = [(group.name, _chosen_error(group)) for group in groups if len(group.kept) < group.size]
    errors = [(name, error) for name, error in chosen if error is not None]
    title = "Best error for every number of channels"
    if errors:
        (easy, least), (hard, most) = min(errors, key=lambda item: item[1]), max(errors, key=lambda item: item[1])
        title = (
            f"At the chosen counts, held-out errors run from {percent(least)} ({easy}) to {percent(most)} ({hard})"
        )
    found_by = _methods(shown)
    cut = facts.pruned is not None
    alt = f"{len(shown)} panels, one per channel group, error falling as more channels stay. " + "; ".join(
        f"{g.name}: {_kept(g)} kept, error {_words(_chosen_error(g))}" if cut else f"{g.name}: {g.size} channels"
        for g in shown
    )
    caption = (
        "Relative squared error of a group's consumers against channels kept. Markers: held-out error of the best "
        f"support, by the method that found it ({', '.join(found_by)}); thin line: training error{_dashed(cut)}. "
        f"Errors below {percent(_SMALLEST_ERROR)} lie on the axis."
    ) + _left_out(groups, shown)
    draw = partial(_draw_paths, groups=shown, methods=found_by, cut=cut)
    return [Figure("paths", title, alt + ".", caption, draw, _size(shown), "paths")]


def sensitivity_figures(facts: Facts) -> list[Figure]:
    """What cutting one group alone does to the network."""
    groups = [group for group in facts.groups if any(known(loss) for _, loss in group.sensitivity)]
    if not groups:
        return []
    shown = _worth_showing(groups)
    level = _common_loss(groups)
    most = max(groups, key=lambda group: _share_at(group, level))
    costs = f"costs {number(level)} {facts.loss_unit}"
    title = f"{most.name} is the most sensitive group: cut to {percent(_share_at(most, level))} it {costs}"
    alt = (
        f"{len(shown)} panels, one per channel group, loss falling as more channels stay. One group alone "
        f"cut to this {costs}: " + "; ".join(f"{group.name}: {percent(_share_at(group, level))}" for group in shown)
    )
    caption = (
        f"Loss of the network ({facts.loss_unit}) with one group alone cut and its consumers re-estimated, "
        f"against the fraction of channels kept; grey: the other groups{_dashed(facts.pruned is not None)}. "
        "A loss of zero lies on the axis."
    ) + _left_out(groups, shown)
    draw = partial(_draw_sensitivity, groups=shown, unit=facts.loss_unit, cut=facts.pruned is not None)
    return [Figure("sensitivity", title, alt + ".", caption, draw, _size(shown), "paths")]


def _dashed(cut: bool) -> str:
    """For a caption: there is no chosen count before there is a solution."""
    return "; dashed: the chosen count" if cut else ""


def _kept(group: GroupFacts) -> str:
    return f"{len(group.kept)} of {group.size}"


def _worth_showing(groups: Sequence[GroupFacts]) -> list[GroupFacts]:
    """All, or of many those that cost the network most, in the network's order."""
    if len(groups) <= PANELS:
        return list(groups)
    loss = [group.predicted_loss if known(group.predicted_loss) else -1.0 for group in groups]
    ranked = sorted(range(len(groups)), key=lambda place: (-(loss[place] or 0.0), -groups[place].size, place))
    return [groups[place] for place in sorted(ranked[:PANELS])]


def _left_out(groups: Sequence[GroupFacts], shown: Sequence[GroupFacts]) -> str:
    if len(shown) == len(groups):
        return ""
    return f" Shown: the {len(shown)} of {count(len(groups))} groups whose cut costs the network most."


def _size(groups: Sequence[GroupFacts]) -> tuple[float, float]:
    rows = -(-len(groups) // _COLUMNS)
    columns = min(len(groups), _COLUMNS)
    return max(WHOLE * columns / _COLUMNS, 5.0), 0.6 + 2.1 * rows


def _error(point: FrontPoint) -> float:
    """Held-out error where it was evaluated, else training error; 0 where neither is a number."""
    held_out = point.held_out_error
    error = held_out if held_out is not None and known(held_out) else point.training_error
    return error if known(error) else 0.0


def _chosen_error(group: GroupFacts) -> float | None:
    return next((_error(point) for point in group.front if point.kept == len(group.kept)), None)


def _words(error: float | None) -> str:
    return "unknown" if error is None else percent(error)


def _common_loss(groups: Sequence[GroupFacts]) -> float:
    """A round loss in the middle of those that were measured in every group: of each, at counts of its own."""
    curves = [[loss for _, loss in group.sensitivity if known(loss) and loss > 0] for group in groups]
    ends = [(min(curve), max(curve)) for curve in curves if curve]
    if not ends:
        return 0.0
    return float(f"{math.sqrt(max(low for low, _ in ends) * min(high for _, high in ends)):.0e}")


def _share_at(group: GroupFacts, level: float) -> float:
    """Fraction of the channels with which the network loses `level`, or at the nearest loss that was measured."""
    measured = [(kept / group.size, loss) for kept, loss in group.sensitivity if known(loss)]
    if not measured:
        return 0.0
    shares, losses = np.array(measured).T
    falling = np.log(np.maximum(np.minimum.accumulate(losses), _TINY))
    return float(np.interp(math.log(max(level, _TINY)), falling[::-1], shares[::-1]))


def _methods(groups: Sequence[GroupFacts]) -> list[str]:
    """In the order of `_STYLES`, then of the alphabet."""
    names = {point.method for group in groups for point in group.front}
    return [name for name in _STYLES if name in names] + sorted(names - set(_STYLES))


def _style(method: str, methods: Sequence[str], theme: Theme) -> tuple[str, str]:
    """Marker and colour of a method."""
    others = [name for name in methods if name not in _STYLES]
    marker, role = _STYLES.get(method) or _FURTHER[others.index(method) % len(_FURTHER)]
    return marker, getattr(theme, role)


def _panels(
    canvas: Canvas, theme: Theme, groups: Sequence[GroupFacts], x: str, draw: DrawPanel, *, cut: bool
) -> None:
    """A grid of axes with a common vertical scale, read at the left of every row."""
    columns = min(len(groups), _COLUMNS)
    rows = -(-len(groups) // columns)
    grid = canvas.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(groups):
            axes.set_visible(False)
            continue
        group = groups[place]
        styled(axes, theme, x=x if place + columns >= len(groups) else "", y="")
        draw(axes, group)
        headed(axes, theme, f"{shorten(group.name, 30)} · {_kept(group) if cut else group.size}")
        if place % columns:
            axes.tick_params(labelleft=False)


def _draw_paths(
    canvas: Canvas, theme: Theme, *, groups: Sequence[GroupFacts], methods: Sequence[str], cut: bool
) -> None:
    low, high = log_range(_error(point) for group in groups for point in group.front if point.kept < group.size)
    limits = max(low, min(_SMALLEST_ERROR, high / 10)), high

    def panel(axes: Axes, group: GroupFacts) -> None:
        log_axis(axes, "y", limits, percent_tick)
        axes.set_xlim(0, 1.03 * group.size)
        plain_axis(axes.xaxis, ticks=4, integer=True)
        front = [point for point in group.front if known(point.training_error)]
        training = floored((point.training_error for point in front), limits[0])
        axes.plot([point.kept for point in front], training, color=theme.muted, linewidth=0.8)
        if cut:
            axes.axvline(len(group.kept), color=theme.purple, linewidth=1.1, linestyle="--")
        always = [place for place, point in enumerate(group.front) if point.kept == len(group.kept)]
        shown = [group.front[place] for place in thinned(len(group.front), _MARKERS_AT_MOST, always)]
        for method in methods:
            found = [point for point in shown if point.method == method and _error(point) > 0]
            marker, colour = _style(method, methods, theme)
            heights = floored((_error(point) for point in found), limits[0])
            axes.plot([point.kept for point in found], heights, marker, color=colour, markersize=3.6)

    _panels(canvas, theme, groups, "channels kept", panel, cut=cut)
    _name_methods(canvas, theme, methods, cut=cut)


def _name_methods(canvas: Canvas, theme: Theme, methods: Sequence[str], *, cut: bool) -> None:
    axes = canvas.axes[0]
    for method in methods:
        marker, colour = _style(method, methods, theme)
        axes.plot([], [], marker, color=colour, markersize=5, label=drawable(method, 24))
    axes.plot([], [], color=theme.muted, linewidth=0.8, label="training error")
    if cut:
        axes.plot([], [], color=theme.purple, linewidth=1.1, linestyle="--", label="chosen")
    legend(canvas, theme, len(methods) + 2)


def _draw_sensitivity(canvas: Canvas, theme: Theme, *, groups: Sequence[GroupFacts], unit: str, cut: bool) -> None:
    curves = {
        group.name: [(kept / group.size, loss) for kept, loss in group.sensitivity if known(loss)]
        for group in groups
    }
    low, high = log_range(loss for curve in curves.values() for _, loss in curve)

    def panel(axes: Axes, group: GroupFacts) -> None:
        log_axis(axes, "y", (low, high))
        axes.set_xlim(0, 1.02)
        plain_axis(axes.xaxis, percent_tick, ticks=4)
        for name, curve in curves.items():
            own = name == group.name
            axes.plot(
                [fraction for fraction, _ in curve],
                floored((loss for _, loss in curve), low),
                color=theme.blue if own else theme.edge,
                marker="o" if own else None,
                markersize=3,
                linewidth=1.6 if own else 0.4,
                zorder=3 if own else 1,
            )
        if cut:
            axes.axvline(len(group.kept) / group.size, color=theme.purple, linewidth=1.1, linestyle="--")

    _panels(canvas, theme, groups, "channels kept", panel, cut=cut)
    canvas.supylabel(drawable(unit), color=theme.muted, fontsize=SMALL)
