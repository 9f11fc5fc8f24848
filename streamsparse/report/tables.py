"""A report on the terminal: what was pruned, what it costs and gains, and every layer."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from streamsparse.report.facts import Facts, LayerFacts, Measured
from streamsparse.report.wording import (
    CUT_SHORT,
    MISSING,
    SPACE,
    compact,
    count,
    duration,
    fewer,
    moment,
    number,
    percent,
    printable,
    size,
)

LAYERS_AT_MOST = 40
_LEAST_ERROR = 1e-5  # below, digits mean nothing


def tables(facts: Facts) -> list[Table]:
    """Those that the facts fill, in reading order."""
    found = [_summary(facts)]
    if facts.measured:
        found.append(_measured(facts))
    if facts.layers and facts.pruned is not None:
        found.append(_layers(facts))
    if facts.stages:
        found.append(_stages(facts))
    return found


def _summary(facts: Facts) -> Table:
    """Costs before and after, and the loss that is predicted."""
    table = _table(facts.title, ("", "original", "pruned", "change"), texts=1)
    before, after = facts.original, facts.pruned
    costs = (
        ("parameters", before.parameters, None if after is None else after.parameters, count),
        ("MACs per image", before.macs, None if after is None else after.macs, compact),
        ("size of tensors", before.bytes, None if after is None else after.bytes, size),
    )
    for name, original, pruned, words in costs:
        own = MISSING if pruned is None else words(pruned)
        _add(table, name, words(original), own, "" if pruned is None else fewer(original, pruned))
    if facts.predicted_loss is not None:
        _add(table, "predicted loss", "", number(facts.predicted_loss), facts.loss_unit)
    if facts.improved_loss is not None:
        _add(table, "measured loss", "", number(facts.improved_loss), "as improve saw it")
    if facts.budget is not None:
        _add(table, "budget", "", facts.budget, "")
    if facts.mode is not None:
        _add(table, "weights", "", facts.mode, "running statistics anew" if facts.recalibrated else "")
    return table


def _measured(facts: Facts) -> Table:
    """A line per checkpoint that was evaluated."""
    headings = ("checkpoint", "images", "accuracy", "agree", "KL", "per image")
    table = _table("Measured, original → pruned; KL in nats", headings, texts=1)
    for one in facts.measured:
        quality = percent(one.agreement), number(one.divergence)
        _add(table, one.checkpoint, count(one.images), _accuracies(one), *quality, _times(one))
    return table


def _accuracies(one: Measured) -> str:
    if one.original_accuracy is None or one.pruned_accuracy is None:
        return "no labels"
    return f"{100 * one.original_accuracy:.2f} → {100 * one.pruned_accuracy:.2f}{SPACE}%"


def _times(one: Measured) -> str:
    if one.original_seconds is None or one.pruned_seconds is None:
        return MISSING
    before, after = duration(one.original_seconds), duration(one.pruned_seconds)
    unit = after[len(after.rstrip("msµ")) - 1 :]  # with the space before it; said once where both have it
    return f"{before.removesuffix(unit)} → {after}"


def _layers(facts: Facts) -> Table:
    """Every layer; of many, those that changed."""
    shown = list(facts.layers)
    if len(shown) > LAYERS_AT_MOST:
        shown = [one for one in shown if one.report.costs != one.report.original_costs]
    left = len(facts.layers) - len(shown)
    title = "Layers, relative squared error of their outputs" + (f"; {left} unchanged" if left else "")
    headings = ("layer", "inputs", "outputs", "params", "MACs", "predicted", "measured")
    table = _table(title, headings, texts=1)
    for one in shown:
        _add(table, *_layer(one))
    return table


def _layer(facts: LayerFacts) -> Iterator[str]:
    report = facts.report
    yield report.layer
    yield f"{count(report.inputs_kept)}/{count(report.inputs)}"
    yield f"{count(report.outputs_kept)}/{count(report.outputs)}"
    yield count(report.costs.parameters)
    yield compact(report.costs.macs)
    for error in (report.held_out_error, facts.measured_error):
        yield "" if error is None else percent(error) if error >= _LEAST_ERROR else f"< {percent(_LEAST_ERROR)}"


def _stages(facts: Facts) -> Table:
    table = _table("Time and memory", ("stage", "time", "peak memory", "finished (UTC)"), texts=1)
    for one in facts.stages:
        memory = MISSING if one.peak_bytes is None else size(one.peak_bytes)
        _add(table, one.stage, duration(one.seconds), memory, moment(one.finished) or CUT_SHORT)
    return table


def _table(title: str, headings: tuple[str, ...], texts: int) -> Table:
    """Columns on the left, so many, are text; the others are numbers."""
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position < texts else "right", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """Names come from models and users: they are shown as they are, without markup."""
    table.add_row(*(Text(printable(cell)) for cell in cells))
