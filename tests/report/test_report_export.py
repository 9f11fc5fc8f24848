"""The data files of a report: they load again, and say their units."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO

import pytest

from streamsparse.report.export import csv_files, headline, json_file
from streamsparse.report.facts import Facts
from tests.report.example import empty_facts, hostile_facts, lenet_facts

NAMES = ["layers.csv", "groups.csv", "points.csv", "stages.csv"]


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(data.decode(), newline="")))


@pytest.fixture(scope="module")
def facts() -> Facts:
    return lenet_facts()


def test_json_loads_again(facts: Facts) -> None:
    assert Facts.from_json(json.loads(json_file(facts))) == facts
    assert Facts.from_json(json.loads(json_file(empty_facts()))) == empty_facts()


def test_json_has_no_numbers_that_json_has_not(facts: Facts) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_file(replace(facts, predicted_loss=float("nan")))


def test_layers(facts: Facts) -> None:
    found = rows(csv_files(facts)["layers.csv"])
    assert [row["layer"] for row in found] == [layer.report.layer for layer in facts.layers]
    for row, layer in zip(found, facts.layers, strict=True):
        assert int(row["inputs kept (channels)"]) == layer.report.inputs_kept
        assert int(row["MACs after (per image)"]) == layer.report.costs.macs
        error = row["held-out error (relative squared)"]
        assert (float(error) if error else None) == layer.report.held_out_error
        assert (float(row["condition (of eigenvalues)"] or "nan") == layer.condition) or layer.condition is None


def test_groups_are_their_fronts(facts: Facts) -> None:
    found = rows(csv_files(facts)["groups.csv"])
    assert len(found) == sum(len(group.front) for group in facts.groups)
    for group in facts.groups:
        own = [row for row in found if row["group"] == group.name]
        assert [int(row["kept (channels)"]) for row in own if row["chosen (0 or 1)"] == "1"] == [len(group.kept)]
        for row, point in zip(own, group.front, strict=True):
            assert float(row["training error (relative squared)"]) == point.training_error
            held_out = row["held-out error (relative squared)"]
            assert (held_out == "") == (point.held_out_error is None)
            assert held_out == "" or float(held_out) == point.held_out_error


def test_points_mark_the_chosen_one(facts: Facts) -> None:
    found = rows(csv_files(facts)["points.csv"])
    assert [int(row["parameters"]) for row in found] == [point.costs.parameters for point in facts.points]
    marked = [number for number, row in enumerate(found) if row["chosen (0 or 1)"] == "1"]
    assert marked == ([] if facts.chosen is None else [facts.chosen])
    unit = f"predicted loss ({facts.loss_unit})"
    assert [float(row[unit]) for row in found] == [point.predicted_loss for point in facts.points]


def test_stages(facts: Facts) -> None:
    for row, stage in zip(rows(csv_files(facts)["stages.csv"]), facts.stages, strict=True):
        assert (row["stage"], float(row["time (seconds)"])) == (stage.stage, stage.seconds)
        assert row["peak memory (bytes)"] == ("" if stage.peak_bytes is None else str(stage.peak_bytes))


def test_headers_are_there_without_data() -> None:
    files = csv_files(empty_facts())
    assert list(files) == NAMES
    for data in files.values():
        assert data.count(b"\r\n") == 1
        assert data.endswith(b"\r\n")


@pytest.mark.parametrize("name", ['a,"b"\nc', "ä→Ω", "'; DROP TABLE", "  "])
def test_names_survive(name: str) -> None:
    facts = hostile_facts(name)
    found = rows(csv_files(facts)["layers.csv"])
    assert [row["layer"] for row in found] == [layer.report.layer for layer in facts.layers]
    assert Facts.from_json(json.loads(json_file(facts))) == facts


def test_the_headline_is_json(facts: Facts) -> None:
    found = json.loads(json.dumps(headline(facts), allow_nan=False))
    assert facts.pruned is not None
    assert found["pruned"]["parameters"] == facts.pruned.parameters
    assert found["sparsity"] == 1 - facts.pruned.parameters / facts.original.parameters
    assert found["pruned_accuracy"] == facts.measured[0].pruned_accuracy
    bare = headline(empty_facts())
    assert {bare[key] for key in ("pruned", "sparsity", "predicted_loss", "agreement")} == {None}


def test_the_headline_is_not_of_another_networks_evaluation(facts: Facts) -> None:
    """After `solve` with another budget the run still holds the evaluation of what was written before."""
    assert facts.pruned is not None
    other = replace(facts.measured[0], costs=facts.original, pruned_accuracy=0.1)
    found = headline(replace(facts, measured=(other,)))
    assert [found[key] for key in ("original_accuracy", "pruned_accuracy", "agreement", "divergence")] == [None] * 4
    own = replace(facts.measured[0], costs=facts.pruned)
    assert headline(replace(facts, measured=(other, own)))["pruned_accuracy"] == own.pruned_accuracy
