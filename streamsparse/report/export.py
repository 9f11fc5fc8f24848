"""The facts of a report as data: one JSON file that loads again, and CSV files for spreadsheets.

    report.json     everything; `Facts.from_json` reads it
    layers.csv      a line per convolution and linear layer
    groups.csv      a line per channel group and count: its front
    points.csv      a line per network on the front of all budgets
    stages.csv      a line per stage: seconds and memory

The first line of a CSV file names the columns and their units. An empty cell: there is no such number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import StringIO

from streamsparse.report.facts import Facts, LayerFacts

JSON_FILE = "report.json"
Row = Sequence[object]


def json_file(facts: Facts) -> bytes:
    """All facts, UTF-8."""
    return json.dumps(facts.to_json(), allow_nan=False, ensure_ascii=False, indent=1).encode()


def csv_files(facts: Facts) -> dict[str, bytes]:
    """By file name; UTF-8, one header line, CRLF line ends as RFC 4180 has them."""
    return {
        "layers.csv": _csv(_LAYERS, map(_layer, facts.layers)),
        "groups.csv": _csv(_GROUPS, _front_points(facts)),
        "points.csv": _csv([name.format(unit=facts.loss_unit) for name in _POINTS], _networks(facts)),
        "stages.csv": _csv(_STAGES, _stages(facts)),
    }


_LAYERS = (
    "layer",
    "inputs (channels)",
    "inputs kept (channels)",
    "outputs (channels)",
    "outputs kept (channels)",
    "parameters before",
    "parameters after",
    "MACs before (per image)",
    "MACs after (per image)",
    "size before (bytes)",
    "size after (bytes)",
    "held-out error (relative squared)",
    "measured error (relative squared)",
    "features (columns)",
    "patches (rows)",
    "images",
    "condition (of eigenvalues)",
    "rank (columns)",
    "excess (held-out over training error - 1)",
)


def _layer(facts: LayerFacts) -> Row:
    report = facts.report
    before, after = report.original_costs, report.costs
    return (
        report.layer, report.inputs, report.inputs_kept, report.outputs, report.outputs_kept,
        before.parameters, after.parameters, before.macs, after.macs, before.bytes, after.bytes,
        report.held_out_error, facts.measured_error, facts.features, facts.patches, facts.images,
        facts.condition, facts.rank, facts.excess,
    )  # fmt: skip


_GROUPS = (
    "group",
    "channels",
    "kept (channels)",
    "chosen (0 or 1)",
    "training error (relative squared)",
    "held-out error (relative squared)",
    "method",
)


def _front_points(facts: Facts) -> Iterator[Row]:
    for group in facts.groups:
        for one in group.front:
            chosen = int(facts.pruned is not None and one.kept == len(group.kept))
            yield (
                group.name, group.size, one.kept, chosen, one.training_error, one.held_out_error, one.method,
            )  # fmt: skip


_POINTS = ("parameters", "MACs (per image)", "size (bytes)", "predicted loss ({unit})", "chosen (0 or 1)")


def _networks(facts: Facts) -> Iterator[Row]:
    for number, point in enumerate(facts.points):
        costs = point.costs
        yield costs.parameters, costs.macs, costs.bytes, point.predicted_loss, int(number == facts.chosen)


_STAGES = ("stage", "time (seconds)", "peak memory (bytes)", "finished (UTC)", "machine", "reused")


def _stages(facts: Facts) -> Iterator[Row]:
    for one in facts.stages:
        yield one.stage, one.seconds, one.peak_bytes, one.finished, one.machine, "; ".join(one.reused)


def _csv(header: Row, rows: Iterator[Row]) -> bytes:
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)  # None is written as an empty cell
    return text.getvalue().encode()


def headline(facts: Facts) -> Mapping[str, object]:
    """The figures at the top of a report, for one line of JSON."""
    measured = facts.own_measurement
    return {
        "original": asdict(facts.original),
        "pruned": None if facts.pruned is None else asdict(facts.pruned),
        "sparsity": None if facts.pruned is None else 1 - facts.pruned.parameters / facts.original.parameters,
        "predicted_loss": facts.predicted_loss,
        "loss_unit": facts.loss_unit,
        "original_accuracy": None if measured is None else measured.original_accuracy,
        "pruned_accuracy": None if measured is None else measured.pruned_accuracy,
        "agreement": None if measured is None else measured.agreement,
        "divergence": None if measured is None else measured.divergence,
    }
