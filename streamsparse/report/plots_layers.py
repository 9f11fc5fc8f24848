"""Figures with one line per layer: channels, costs, conditioning, sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from matplotlib.figure import Figure as Canvas

from streamsparse.report.facts import Facts, LayerFacts
from streamsparse.report.plots_axes import log_range, percent_tick
from streamsparse.report.plots_figure import Figure
from streamsparse.report.plots_rows import Row, draw_bars, draw_dots, limit_of, pagefuls, rows_size
from streamsparse.report.theme import Theme
from streamsparse.report.wording import compact, count, fewer, known, number, percent
from streamsparse.types import Costs

_SHORT = 16
_OUTLINE = "Filled: what stays. Outline: the original."


@dataclass(frozen=True)
class _Kind:
    """What a figure of lines has in words."""

    name: str
    title: str
    alt: str
    caption: str
    section: str


def architecture_figures(facts: Facts) -> list[Figure]:
    """Channels kept, parameters and multiply-accumulates of every layer, before and after."""
    if not facts.layers or facts.pruned is None:
        return []
    return [
        *_channels(facts.layers),
        *_costs(facts, facts.pruned, "parameters", "parameters", lambda costs: costs.parameters),
        *_costs(facts, facts.pruned, "macs", "multiply-accumulates", lambda costs: costs.macs),
    ]


def sample_figures(facts: Facts) -> list[Figure]:
    """Condition number, patches per feature, and the held-out error's excess."""
    return [*_conditions(facts.layers), *_patches(facts.layers), *_excess(facts.layers)]


def _channels(layers: Sequence[LayerFacts]) -> list[Figure]:
    reports = [layer.report for layer in layers]
    rows = [
        Row(
            r.layer,
            r.outputs_kept,
            r.outputs,
            f"{count(r.outputs_kept)} of {count(r.outputs)}",
            f"{r.layer}: {count(r.outputs_kept)} of {count(r.outputs)} output channels stay",
        )
        for r in reports
    ]
    least = min(reports, key=lambda report: report.outputs_kept / max(report.outputs, 1))
    kept, of = sum(r.outputs_kept for r in reports), sum(r.outputs for r in reports)
    title = (
        f"{count(kept)} of {count(of)} channels stay; {least.layer} keeps {least.outputs_kept} of {least.outputs}"
    )
    if kept == of:
        title = f"All {count(of)} channels stay"
    kind = _Kind(
        "channels", title, "Output channels kept", f"Output channels of every layer. {_OUTLINE}", "architecture"
    )
    return _bar_figures(kind, rows, "output channels", compact)


def _costs(facts: Facts, pruned: Costs, name: str, words: str, of: Callable[[Costs], int]) -> list[Figure]:
    rows = []
    for layer in facts.layers:
        before, after = of(layer.report.original_costs), of(layer.report.costs)
        text = f"{compact(after)} of {compact(before)}"
        rows.append(Row(layer.report.layer, after, before, text, f"{layer.report.layer}: {text} {words} stay"))
    largest = max(facts.layers, key=lambda layer: of(layer.report.costs)).report
    share = percent(of(largest.costs) / of(pruned)) if of(pruned) else "all"
    title = f"{fewer(of(facts.original), of(pruned)).capitalize()} {words}; {largest.layer} has {share} of the rest"
    kind = _Kind(
        f"layer-{name}",
        title,
        words.capitalize(),
        f"{words.capitalize()} of every layer. {_OUTLINE}",
        "architecture",
    )
    return _bar_figures(kind, rows, words, compact)


def _conditions(layers: Sequence[LayerFacts]) -> list[Figure]:
    found = [(layer, layer.condition) for layer in layers if layer.condition is not None and known(layer.condition)]
    if not found:
        return []
    rows = [
        Row(f.report.layer, value, None, number(value), f"{f.report.layer}: {number(value)}") for f, value in found
    ]
    worst, largest = max(found, key=lambda item: item[1])
    deficient = [f.report.layer for f, _ in found if f.rank is not None and f.rank < f.features]
    title = f"The worst conditioned inputs are those of {worst.report.layer}: {number(largest)}"
    if len(found) < len(layers):
        of = f"{len(found)} of {len(layers)} layers"
        title = f"Of {of}, {worst.report.layer} has the worst conditioned inputs: {number(largest)}"
    caption = (
        "Largest over smallest eigenvalue (above round-off) of the Gram matrix of each layer's standardised "
        "inputs. Beyond 10⁷ single precision would lose every digit; double precision and the ridge keep the "
        "solution stable."
    )
    if deficient:
        caption += f" Rank is below the number of features in {len(deficient)} of {len(found)} layers."
    return _dot_figures(_Kind("condition", title, "Condition number", caption, "sample"), rows, "condition number")


def _patches(layers: Sequence[LayerFacts]) -> list[Figure]:
    found = [
        (layer, layer.patches / layer.features) for layer in layers if layer.features > 0 and layer.patches > 0
    ]
    if not found:
        return []
    rows = [
        Row(
            f.report.layer,
            ratio,
            None,
            number(ratio),
            f"{f.report.layer}: {number(ratio)} ({compact(f.patches)} patches, {compact(f.features)} features)",
        )
        for f, ratio in found
    ]
    fewest, least = min(found, key=lambda item: item[1])
    title = f"Every layer has at least {number(least)} patches per feature ({fewest.report.layer} has fewest)"
    caption = (
        "Rows over columns of each layer's regression. Below 1, the sample alone does not determine the "
        "weights; patches of one image resemble each other, so that many per feature are better."
    )
    kind = _Kind("patches", title, "Patches per feature", caption, "sample")
    return _dot_figures(kind, rows, "patches per feature", mark=(1.0, "as many patches as features"))


def _excess(layers: Sequence[LayerFacts]) -> list[Figure]:
    found = [(layer, layer.excess) for layer in layers if layer.excess is not None and known(layer.excess)]
    if not found:
        return []
    rows = [
        Row(f.report.layer, value, None, percent(value), f"{f.report.layer}: {percent(value)}")
        for f, value in found
    ]
    worst, largest = max(found, key=lambda item: item[1])
    title = (
        f"Held-out errors exceed training errors by {percent(median(value for _, value in found))} in the "
        f"median, most in {worst.report.layer}: {percent(largest)}"
    )
    caption = (
        "Held-out over training error at the chosen count, minus 1. Near 0, more calibration images would not "
        "help; a large excess says that they would."
    )
    kind = _Kind("excess", title, "Held-out over training error, minus 1", caption, "sample")
    return _bar_figures(kind, rows, "held-out over training error − 1", percent_tick)


def _bar_figures(kind: _Kind, rows: Sequence[Row], axis: str, words: Callable[[float], str]) -> list[Figure]:
    draw = partial(_bars, axis=axis, limit=limit_of(rows), words=words)
    return _paged(kind, rows, draw)


def _dot_figures(
    kind: _Kind, rows: Sequence[Row], axis: str, mark: tuple[float, str] | None = None
) -> list[Figure]:
    draw = partial(_dots, axis=axis, limits=log_range([row.value for row in rows]), mark=mark)
    return _paged(kind, rows, draw)


def _bars(
    canvas: Canvas,
    theme: Theme,
    *,
    rows: Sequence[Row],
    axis: str,
    limit: float,
    words: Callable[[float], str],
) -> None:
    draw_bars(canvas, theme, rows, axis=axis, limit=limit, words=words)


def _dots(
    canvas: Canvas,
    theme: Theme,
    *,
    rows: Sequence[Row],
    axis: str,
    limits: tuple[float, float],
    mark: tuple[float, str] | None,
) -> None:
    draw_dots(canvas, theme, rows, axis=axis, limits=limits, mark=mark)


def _paged(kind: _Kind, rows: Sequence[Row], draw: Callable[..., None]) -> list[Figure]:
    """One figure, or several of as many lines as a printed page holds; labels without what all begin with."""
    common = _common_start([row.label for row in rows])
    rows = [replace(row, label=row.label[len(common) :]) for row in rows]
    pages = pagefuls(rows)
    found = []
    for number_, page in enumerate(pages, start=1):
        name = kind.name if len(pages) == 1 else f"{kind.name}-{number_}"
        part = "" if len(pages) == 1 else f" (part {number_} of {len(pages)})"
        alt = f"{kind.alt}, layer by layer{part}: {'; '.join(row.tip for row in page)}."
        figure = partial(draw, rows=page)
        found.append(Figure(name, kind.title + part, alt, kind.caption, figure, rows_size(page), kind.section))
    return found


def _common_start(paths: Sequence[str]) -> str:
    """Leading components that all of some long module paths share, with their dots; "" where all are short."""
    found = ""
    if max(map(len, paths)) <= _SHORT:
        return found
    for part in paths[0].split(".")[:-1] if len(paths) > 1 else []:
        if not all(path.startswith(f"{found}{part}.") for path in paths):
            break
        found += f"{part}."
    return found
