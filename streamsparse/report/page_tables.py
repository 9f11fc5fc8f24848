"""The page's tables: numbers right-aligned, units in the head, sortable where there is a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from streamsparse.report.facts import Facts, LayerFacts, Measured, NetworkPoint, StageFacts
from streamsparse.report.page_html import Html, element, joined
from streamsparse.report.wording import (
    CUT_SHORT,
    MISSING,
    SPACE,
    compact,
    count,
    duration,
    known,
    moment,
    number,
    percent,
    plural,
    size,
)

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column.

    Attributes:
        head: its name, which neighbours may share; unit: under it, or "".
        value: what a row sorts by: a number, words, or None where there is none.
        words: of a number; None for a column of words.
    """

    head: str
    unit: str
    value: Callable[[Row], float | str | None]
    words: Callable[[float], str] | None = count


def layer_table(facts: Facts) -> Html:
    """Channels, costs and errors of every layer."""
    columns: list[Column[LayerFacts]] = [
        Column("Layer", "", lambda layer: layer.report.layer, None),
        Column("Inputs", "kept", lambda layer: layer.report.inputs_kept),
        Column("Inputs", "original", lambda layer: layer.report.inputs),
        Column("Outputs", "kept", lambda layer: layer.report.outputs_kept),
        Column("Outputs", "original", lambda layer: layer.report.outputs),
        Column("Parameters", "after", lambda layer: layer.report.costs.parameters),
        Column("Parameters", "before", lambda layer: layer.report.original_costs.parameters),
        Column("MACs per image", "after", lambda layer: layer.report.costs.macs, compact),
        Column("MACs per image", "before", lambda layer: layer.report.original_costs.macs, compact),
        Column("Relative squared error", "predicted", lambda layer: layer.report.held_out_error, _error),
        Column("Relative squared error", "measured", lambda layer: layer.measured_error, _error),
    ]
    return table("layer-table", "Every layer, in order of execution", columns, facts.layers, sortable=True)


def sample_table(facts: Facts) -> Html:
    """What the regression of every layer was estimated from."""
    columns: list[Column[LayerFacts]] = [
        Column("Layer", "", lambda layer: layer.report.layer, None),
        Column("Images", "", lambda layer: layer.images),
        Column("Patches", "rows", lambda layer: layer.patches),
        Column("Features", "columns", lambda layer: layer.features),
        Column("Rank", "", lambda layer: layer.rank),
        Column("Condition number", "", lambda layer: layer.condition, number),
        Column("Held-out over training error", "minus 1", lambda layer: layer.excess, percent),
    ]
    sampled = [layer for layer in facts.layers if layer.patches > 0]
    return table("sample-table", "The regression of every layer", columns, sampled, sortable=True)


def measured_table(facts: Facts) -> Html:
    """Every checkpoint that was evaluated."""
    columns: list[Column[Measured]] = [
        Column("Checkpoint", "", lambda one: one.checkpoint, None),
        Column("Images", "", lambda one: one.images),
        Column("Parameters", "", lambda one: one.costs.parameters if one.costs else None),
        Column("Accuracy", "original", lambda one: one.original_accuracy, _accuracy),
        Column("Accuracy", "pruned", lambda one: one.pruned_accuracy, _accuracy),
        Column("Same class", "of all images", lambda one: one.agreement, _accuracy),
        Column("Divergence", "nats per image", lambda one: one.divergence, number),
        Column("Forward pass per image", "original", lambda one: one.original_seconds, duration),
        Column("Forward pass per image", "pruned", lambda one: one.pruned_seconds, duration),
        Column("Timed on", "", lambda one: _timed_on(one), None),
    ]
    if any(one.larger_batches for one in facts.measured):
        columns.append(Column("Larger batches", "per image", lambda one: _larger_batches(one), None))
    return table("measured-table", "Original and pruned network on the same images", columns, facts.measured)


def point_table(facts: Facts) -> Html:
    """The network's front in numbers."""
    columns: list[Column[NetworkPoint]] = [
        Column("Parameters", "", lambda point: point.costs.parameters),
        Column("MACs", "per image", lambda point: point.costs.macs, compact),
        Column("Weights", "", lambda point: point.costs.bytes, size),
        Column("Predicted loss", facts.loss_unit, lambda point: point.predicted_loss, number),
        Column("", "", lambda point: "chosen" if point.costs == facts.pruned else "", None),
    ]
    return table("point-table", "The networks of the curve", columns, facts.points)


def stage_table(facts: Facts) -> Html:
    """When and where every stage ran."""
    columns: list[Column[StageFacts]] = [
        Column("Stage", "", lambda stage: stage.stage, None),
        Column("Time", "wall", lambda stage: stage.seconds, duration),
        Column("Memory", "largest resident", lambda stage: stage.peak_bytes, size),
        Column("Finished", "UTC", lambda stage: moment(stage.finished) or CUT_SHORT, None),
        Column("Machine", "", lambda stage: stage.machine, None),
    ]
    if any(stage.reused for stage in facts.stages):
        columns.append(Column("Not done again", "", lambda stage: ", ".join(stage.reused), None))
    return table("stage-table", "Stages as they last ran", columns, facts.stages)


def provenance_table(facts: Facts) -> Html:
    """What went in, in reading order."""
    if not facts.provenance:
        return Html("")
    rows = [
        element("tr", element("th", what, scope="row"), element("td", value, class_="long"))
        for what, value in facts.provenance
    ]
    body = element("table", element("caption", "What went in"), element("tbody", *rows), class_="pairs")
    return element("div", body, class_="scroll")


def table(
    name: str, caption: str, columns: Sequence[Column[Row]], rows: Sequence[Row], *, sortable: bool = False
) -> Html:
    """A table in a box of its own that scrolls, its head and first column in sight; "" without rows."""
    if not rows:
        return Html("")
    body = [
        element("tr", *(_cell(column, row, place == 0) for place, column in enumerate(columns))) for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", *_head(columns)),
        element("tbody", joined(body)),
        id=name,
        class_="sortable" if sortable else None,
    )
    return element("div", whole, class_="scroll tall", tabindex=0, role="region", aria_label=caption)


def _head(columns: Sequence[Column[Row]]) -> list[Html]:
    """One row, or two: neighbours of one name share it, their units below tell them apart."""
    groups = [list(group) for _, group in groupby(enumerate(columns), key=lambda item: item[1].head)]
    shared = any(len(group) > 1 for group in groups)
    upper, lower = [], []
    for group in groups:
        place, column = group[0]
        if len(group) == 1:
            unit = element("small", column.unit) if column.unit else Html("")
            upper.append(_head_cell(place, column, element("span", column.head), unit, rows=2 if shared else None))
            continue
        upper.append(element("th", column.head, scope="colgroup", colspan=len(group), class_="shared"))
        lower += [_head_cell(place, column, element("span", column.unit)) for place, column in group]
    return [element("tr", *cells) for cells in (upper, lower) if cells]


def _head_cell(place: int, column: Column[Row], *words: Html, rows: int | None = None) -> Html:
    side = "number" if column.words else None
    return element("th", *words, scope="col", rowspan=rows, class_=side, data_column=place)


def _cell(column: Column[Row], row: Row, first: bool) -> Html:
    value = column.value(row)
    tag = "th" if first and column.words is None else "td"
    scope = "row" if tag == "th" else None
    if column.words is None:
        words = str(value or "")
        return element(tag, _breakable(words) if first else words, scope=scope)
    missing = not isinstance(value, (int, float)) or not known(value)
    shown = MISSING if missing else column.words(float(value or 0))
    return element(tag, shown, scope=scope, class_="number", data_value=None if missing else repr(value))


def _breakable(path: str) -> Html:
    """A long module path may break after its dots."""
    parts = path.split(".") if len(path) > 20 else [path]
    return joined([part for piece in parts[:-1] for part in (f"{piece}.", element("wbr"))] + parts[-1:])


def _accuracy(fraction: float) -> str:
    return f"{100 * fraction:.2f}{SPACE}%"


def _error(error: float) -> str:
    """Below a hundred-thousandth, round-off and ridge are all there is to read."""
    return percent(error) if error >= 1e-5 else f"< {percent(1e-5)}"


def _larger_batches(one: Measured) -> str:
    return "; ".join(
        f"{timed.images}: {duration(timed.original_seconds)} → {duration(timed.pruned_seconds)}"
        for timed in one.larger_batches
    )


def _timed_on(one: Measured) -> str:
    batch = "" if one.batch_images is None else f", {plural(one.batch_images, 'image')} at a time"
    return f"{one.device}{batch}" if one.device and one.pruned_seconds is not None else ""
