"""The summary on the terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from streamsparse.report.facts import Facts
from streamsparse.report.tables import LAYERS_AT_MOST, tables
from streamsparse.report.wording import SPACE, percent
from tests.report.example import empty_facts, hostile_facts, lenet_facts


def printed(facts: Facts, width: int = 120) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        for table in tables(facts):
            console.print(table)
    return capture.get()


def test_costs_and_gains_come_first() -> None:
    facts = lenet_facts()
    text = printed(facts)
    assert facts.pruned is not None
    first = text.splitlines()[0]
    assert facts.title in first
    for number in (facts.original.parameters, facts.pruned.parameters):
        assert f"{number:,}" in text
    fraction = 1 - facts.pruned.parameters / facts.original.parameters
    assert f"{percent(fraction)} fewer" in text
    assert facts.loss_unit in text


def test_what_was_measured_is_shown() -> None:
    facts = lenet_facts()
    (measured, *_) = facts.measured
    assert measured.original_accuracy is not None
    assert measured.pruned_accuracy is not None
    before, after = 100 * measured.original_accuracy, 100 * measured.pruned_accuracy
    assert f"{before:.2f} → {after:.2f}{SPACE}%" in printed(facts)
    timed = replace(measured, original_seconds=0.0163, pruned_seconds=0.00335)
    assert f"16.3 → 3.35{SPACE}ms" in printed(replace(facts, measured=(timed,)))
    timed = replace(measured, original_seconds=0.0163, pruned_seconds=0.000335)
    assert f"16.3{SPACE}ms → 335{SPACE}µs" in printed(replace(facts, measured=(timed,)))
    unlabelled = replace(measured, original_accuracy=None, pruned_accuracy=None, original_seconds=None)
    text = printed(replace(facts, measured=(unlabelled,)))
    assert "no labels" in text
    assert "–" in text


def test_every_layer_has_a_line() -> None:
    facts = lenet_facts()
    lines = printed(facts).splitlines()
    for layer in facts.layers:
        report = layer.report
        (line,) = [line for line in lines if line.startswith(f"│ {report.layer} ") and "/" in line]
        assert f"{report.inputs_kept:,}/{report.inputs:,}" in line
        assert f"{report.costs.parameters:,}" in line


def test_of_many_layers_those_that_changed_are_shown() -> None:
    facts = lenet_facts()
    cut = next(layer for layer in facts.layers if layer.report.costs != layer.report.original_costs)
    whole = replace(cut, report=replace(cut.report, costs=cut.report.original_costs))
    many = replace(facts, layers=(cut, *[whole] * LAYERS_AT_MOST))
    text = printed(many)
    assert f"{LAYERS_AT_MOST} unchanged" in text
    assert text.count(f"│ {cut.report.layer} ") == 1


def test_errors_of_round_off_are_not_spelled_out() -> None:
    facts = lenet_facts()
    tiny = replace(facts.layers[-1], measured_error=3.2e-9)
    assert f"< {percent(1e-5)}" in printed(replace(facts, layers=(tiny,)))


def test_a_run_without_a_solution_has_costs_alone() -> None:
    text = printed(empty_facts())
    assert "61,706" in text
    assert "Layers" not in text
    assert "Measured" not in text


def test_stages_that_were_cut_short_say_so() -> None:
    facts = lenet_facts()
    stage = replace(facts.stages[0], finished="", peak_bytes=None)
    assert "cut short" in printed(replace(facts, stages=(stage,)))


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/nothing]", "a\x1b[31mb", "x" * 300])
def test_names_are_shown_as_they_are(name: str) -> None:
    text = printed(hostile_facts(name), width=400)
    assert "\x1b" not in text
    assert name.replace("\x1b", "\ufffd")[:60] in text


def test_it_fits_a_narrow_terminal() -> None:
    assert max(map(len, printed(lenet_facts(), width=80).splitlines())) <= 80
