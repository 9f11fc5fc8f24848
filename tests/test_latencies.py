"""Latencies of a run: measured, kept, read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamsparse.capture import CaptureSettings, Subject, capture
from streamsparse.cli.app import app
from streamsparse.errors import CorruptDataError, StageMissingError, UsageError
from streamsparse.events import Event, Reused
from streamsparse.intake.captured import read_captured
from streamsparse.intake.latencies import read_latencies
from streamsparse.latencies import measure_latencies
from streamsparse.run import prune
from streamsparse.solve import SolveSettings, solve
from streamsparse.store import Run
from streamsparse.store.solution import read_solution
from streamsparse.verification import verify_run
from tests.small import SmallNet, build, random_images, summed_run

SPEC = f"{__name__}:small_net"


def small_net() -> SmallNet:
    """For the manifest: how the model is built."""
    return SmallNet()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    opened = Run.at(tmp_path / "run")
    capture(build(SmallNet), random_images(8), opened, settings=CaptureSettings("float32"), subject=Subject(SPEC))
    return opened


def test_measured_kept_and_read_again(run: Run) -> None:
    measured = measure_latencies(run, batch_images=3)
    captured = read_captured(run)
    found = read_latencies(run, captured, "cpu")
    assert found.to_json() == measured.to_json()
    assert (found.device, found.batch_images) == ("cpu", 3)
    assert [table.layer for table in found.layers] == ["conv1", "conv2", "fc1", "fc2"]
    assert float(found.seconds({})) == pytest.approx(found.whole_seconds)
    assert verify_run(run) == []


def test_by_command_line(run: Run) -> None:
    result = CliRunner().invoke(app, ["latency", run.url, "--batch-size", "2", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.strip().splitlines()[-1])
    assert printed["latencies"] == read_latencies(run, read_captured(run), "cpu").to_json()


def test_a_dry_run_measures_nothing(run: Run) -> None:
    result = CliRunner().invoke(app, ["latency", run.url, "--dry-run", "--json"])
    assert json.loads(result.stdout.strip().splitlines()[-1])["layers"] == ["conv1", "conv2", "fc1", "fc2"]
    with pytest.raises(StageMissingError):
        read_latencies(run, read_captured(run), "cpu")


def test_another_device_is_named_with_those_that_are_there(run: Run) -> None:
    measure_latencies(run)
    with pytest.raises(StageMissingError, match="streamsparse latency") as raised:
        read_latencies(run, read_captured(run), "cuda:1")
    assert raised.value.got == "'cpu'"


def test_a_table_of_another_model_does_not_count(run: Run) -> None:
    measure_latencies(run)
    about = run.documents.read_json("latencies/cpu.json")
    assert about is not None
    run.documents.write_json("latencies/cpu.json", {**about, "model": "0" * 64})
    with pytest.raises(StageMissingError):
        read_latencies(run, read_captured(run), "cpu")


def test_damage_is_named(run: Run) -> None:
    measure_latencies(run)
    about = run.documents.read_json("latencies/cpu.json")
    assert about is not None
    about["layers"][0]["seconds"] = [[1.0]]
    run.documents.write_json("latencies/cpu.json", about)
    with pytest.raises(CorruptDataError):
        read_latencies(run, read_captured(run), "cpu")
    (problem,) = verify_run(run)
    assert problem.part == "latencies"
    assert "latencies/cpu.json" in problem.key


def test_a_budget_of_latency_from_end_to_end(tmp_path: Path) -> None:
    run = summed_run(tmp_path)
    with pytest.raises(StageMissingError, match="streamsparse latency"):
        solve(run, budget="latency=0.7@cpu")
    model = measure_latencies(run, model=build(SmallNet))
    plan = solve(run, budget="latency=0.9@cpu").plan
    assert plan.predicted_seconds == pytest.approx(float(model.seconds(plan.counts)))
    assert plan.predicted_seconds <= 0.9 * model.whole_seconds
    assert read_solution(run).plan == plan


def test_prune_times_the_layers_by_itself_and_once(tmp_path: Path) -> None:
    events: list[Event] = []
    for name in ("one", "two"):
        result = prune(
            build(SmallNet), random_images(24), budget="latency=0.8@cpu", run=tmp_path, name=name, stages=1,
            sensitivity="none", executor="serial", solve_settings=SolveSettings("elimination"),
            on_event=events.append,
        )  # fmt: skip
        assert result.solution.plan.predicted_seconds is not None
    assert [event.stage for event in events if isinstance(event, Reused)].count("latency") == 1


@pytest.mark.parametrize(("device", "batch"), [("abacus", 1), ("cpu", 0)])
def test_bad_requests(run: Run, device: str, batch: int) -> None:
    with pytest.raises(UsageError):
        measure_latencies(run, device=device, batch_images=batch)
