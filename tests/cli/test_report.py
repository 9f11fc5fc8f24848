"""The report as a user asks for it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import streamsparse as ss
from streamsparse.capture import CaptureSettings
from streamsparse.errors import RunNotFoundError, StorageError, UsageError
from streamsparse.evaluation import evaluate
from streamsparse.report.facts import Facts
from streamsparse.reporting.stage import report_directory
from streamsparse.run import prune
from streamsparse.solve import SolveSettings
from streamsparse.store import Run
from tests.cli.invoking import invoke, last_json
from tests.small import SmallNet, build, files_below, random_images

FILES = {"report.html", "report.json", "layers.csv", "groups.csv", "points.csv", "stages.csv"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, captured, solved, written and evaluated."""
    path = tmp_path_factory.mktemp("report") / "run"
    prune(
        build(SmallNet), random_images(60), budget="params=0.4", run=path, stages=1, executor="serial",
        capture_settings=CaptureSettings("float32", batch_images=20), solve_settings=SolveSettings("elimination"),
    )  # fmt: skip
    test = TensorDataset(random_images(20, seed=7), torch.arange(20) % 5)
    evaluate(path, test, model=build(SmallNet))
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_help_teaches_by_example() -> None:
    result = invoke("report", "--help")
    assert result.exit_code == 0
    assert "streamsparse report runs/lenet" in result.output


def test_a_page_its_data_and_a_summary(run: Path) -> None:
    before = files_below(run)
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (run / "report").iterdir()} == FILES
    page = (run / "report/report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "SmallNet" in page
    for word in ("SmallNet", "fewer", "Measured", "Layers", "Time and memory", "Note: "):
        assert word in result.stdout
    assert {name: data for name, data in files_below(run).items() if not name.startswith("report/")} == before
    assert not list(run.glob(".report*"))
    facts = Facts.from_json(json.loads((run / "report/report.json").read_text()))
    assert dict(facts.provenance)["report written"].endswith("+00:00")
    with (run / "report/layers.csv").open(newline="") as opened:
        assert [row["layer"] for row in csv.DictReader(opened)] == ["conv1", "conv2", "fc1", "fc2"]


def test_json_names_files_and_figures(run: Path, tmp_path: Path) -> None:
    result = invoke("report", run, "--out", tmp_path / "new/out", "--format", "json,csv", "--json")
    assert result.exit_code == 0, result.output
    found = last_json(result)
    assert {Path(path).name for path in found["paths"]} == FILES - {"report.html"}
    assert all(Path(path).parent == tmp_path / "new/out" for path in found["paths"])
    assert found["pruned"]["parameters"] <= 0.4 * found["original"]["parameters"]
    assert found["sparsity"] == 1 - found["pruned"]["parameters"] / found["original"]["parameters"]
    assert 0 <= found["agreement"] <= 1
    assert found["notes"]
    assert not (run / "report").exists()


@pytest.mark.parametrize("form", ["svg", pytest.param("png", marks=pytest.mark.slow)])
def test_figures_one_by_one(run: Path, form: str) -> None:
    result = invoke("report", run, "--format", form, "--json")
    assert result.exit_code == 0, result.output
    paths = [Path(path) for path in last_json(result)["paths"]]
    assert len(paths) > 5
    assert {path.suffix for path in paths} == {f".{form}"}
    start = {"png": b"\x89PNG", "svg": b"<"}[form]
    assert all(path.read_bytes().startswith(start) for path in paths)
    assert {path.parent for path in paths} == {run / "report/figures"}
    assert f"{len(paths)} figures in {run / 'report/figures'}" in invoke("report", run, "--format", form).stdout


def test_another_report_replaces_the_first(run: Path) -> None:
    assert invoke("report", run, "--format", "json,csv").exit_code == 0
    (run / "report/report.json").write_text("old")
    assert invoke("report", run, "--format", "json").exit_code == 0
    assert json.loads((run / "report/report.json").read_text())["title"]
    assert (run / "report/layers.csv").exists()


def test_other_files_are_not_written_over_unasked(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    result = invoke("report", run, "--out", tmp_path / "thesis", "--format", "json", "--json")
    assert result.exit_code == 2
    assert last_json(result)["got"] == "chapter.tex"
    assert {path.name for path in (tmp_path / "thesis").iterdir()} == {"chapter.tex"}
    asked = invoke("report", run, "--out", tmp_path / "thesis", "--format", "json", "--overwrite")
    assert asked.exit_code == 0
    assert (tmp_path / "thesis/chapter.tex").read_text() == "years of work"
    assert (tmp_path / "thesis/report.json").exists()
    assert invoke("report", run, "--out", tmp_path / "thesis/chapter.tex", "--overwrite").exit_code == 2


def test_a_dry_run_touches_nothing(run: Path, tmp_path: Path) -> None:
    before = files_below(run)
    result = invoke("report", run, "--dry-run", "--json")
    assert result.exit_code == 0
    found = last_json(result)
    assert found["directory"] == str(run / "report")
    assert found["formats"] == ["html", "json", "csv"]
    assert found["stages"]["solve"] == "complete"
    assert "html, json, csv" in invoke("report", run, "--dry-run", "--out", tmp_path / "out").stdout
    assert files_below(run) == before
    assert not (tmp_path / "out").exists()


def test_no_run_is_status_2(tmp_path: Path) -> None:
    result = invoke("report", tmp_path / "nothing", "--json")
    assert result.exit_code == 2
    assert last_json(result)["error"] == "RunNotFoundError"
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(RunNotFoundError):
        ss.report(tmp_path / "nothing")


@pytest.mark.parametrize("formats", ["pdf", "html,pdf", "", ","])
def test_unknown_formats(run: Path, formats: str) -> None:
    result = invoke("report", run, "--format", formats, "--json")
    assert result.exit_code == 2
    assert last_json(result)["where"] == "--format"
    assert not (run / "report").exists()


def test_a_run_elsewhere_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a directory"):
        report_directory(Run.at("memory://"), None)
    assert report_directory(Run.at("memory://"), tmp_path / "out") == tmp_path / "out"


def test_the_api_mirrors_the_command(run: Path, tmp_path: Path) -> None:
    found = ss.report(run, tmp_path / "out", formats=("json", "json"))
    assert found.paths == (tmp_path / "out/report.json",)
    assert Facts.from_json(json.loads(found.paths[0].read_text())) == found.facts
    assert callable(ss.report)


def test_a_disk_that_refuses_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="could not be written") as raised:
        ss.report(run, formats=("json",))
    assert raised.value.exit_status == 1
    assert not (run / "report").exists()
    assert not list(run.glob(".report*"))


def test_statistics_alone(run: Path) -> None:
    shutil.rmtree(run / "solution")
    shutil.rmtree(run / "evaluations")
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    assert "Stage 'solve' has not begun" in result.stdout
    assert (run / "report/report.html").exists()
