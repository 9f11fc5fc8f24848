"""The demonstration and the paper's tables: end to end on real images, small where that is enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import pipelines.mnist as mnist
from pipelines.lenet import LeNet
from pipelines.lenet_mnist import DEMO, demo, main
from pipelines.lenet_targets import E1_FC_V1, E1_FC_V2, Settings
from pipelines.recipe import Recipe
from streamsparse.cli.app import app
from streamsparse.errors import RunMismatchError
from streamsparse.events import Event, Finished, Reused
from streamsparse.write.checkpoint import load

KEYS = {"name", "parameters", "sparsity", "accuracy_one_shot", "accuracy_fine_tuned", "macs", "bytes", "checkpoint"}
STAGES = {"capture", "accumulate", "solve", "refit", "write", "evaluate", "fine_tune"}
QUICK = Recipe(epochs=1, learning_rate=1e-4, batch_size=500)
SMALL = Settings((E1_FC_V1, E1_FC_V2), images=500, recipe=QUICK, independent=False)

APPLICATION = typer.Typer()
APPLICATION.command()(main)


def test_dry_run_of_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--dry-run", "--json", "--run", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout.splitlines()[-1])["plan"]
    assert plan["images"] == 8000
    assert [model["parameters"] for model in plan["models"]] == [27_223, 10_332]
    assert {layer["layer"]: layer["columns"] for layer in plan["layers"]}["fc1"] == 400
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_figures_of_the_demonstration(tmp_path: Path) -> None:
    mild, strong = demo(run=tmp_path / "run", settings=DEMO)["models"]
    assert mild["accuracy_one_shot"] >= 0.989
    assert mild["accuracy_fine_tuned"] >= 0.989
    assert strong["accuracy_one_shot"] >= 0.984
    assert strong["accuracy_fine_tuned"] >= 0.987


@pytest.fixture(scope="module")
def _few_images() -> Iterator[None]:
    """The first of the embedded images: the experiment itself is the same with fewer."""
    whole = {"calibration": mnist.calibration(), "test": mnist.test()}
    few = {name: mnist.Mnist(data.images[:2000], data.labels[:2000]) for name, data in whole.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "find_mnist", lambda data_root: None)
        patch.setattr(mnist, "calibration", lambda: few["calibration"])
        patch.setattr(mnist, "test", lambda: few["test"])
        yield


@pytest.fixture(scope="module")
def finished(
    _few_images: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[Event]]:
    """A small demonstration in a directory of its own."""
    run, events = tmp_path_factory.mktemp("demo") / "run", list[Event]()
    return run, demo(run=run, on_event=events.append, settings=SMALL), events


def logits(path: str) -> torch.Tensor:
    images, _ = mnist.test().tensors()
    with torch.inference_mode():
        output: torch.Tensor = load(path, LeNet()).eval()(images)
    return output


def test_machine_readable_summary(finished: tuple[Path, dict[str, Any], list[Event]]) -> None:
    _, summary, _ = finished
    assert json.loads(json.dumps(summary, allow_nan=False))["baseline"] == summary["baseline"]
    assert summary["baseline"].keys() == {"accuracy", "parameters", "macs", "bytes"}
    assert summary["baseline"]["parameters"] == 61_706
    assert summary["seconds"].keys() == STAGES
    assert all(seconds > 0 for seconds in summary["seconds"].values())
    assert all(model.keys() >= KEYS for model in summary["models"])
    assert [model["parameters"] for model in summary["models"]] == [27_223, 10_332]


def test_figures_are_those_of_the_files(finished: tuple[Path, dict[str, Any], list[Event]]) -> None:
    """Accuracy, parameters and bytes, measured again from the checkpoints alone."""
    _, summary, _ = finished
    labels = mnist.test().tensors()[1]
    for model in summary["models"]:
        loaded = load(model["checkpoint"], LeNet())
        assert sum(parameter.numel() for parameter in loaded.parameters()) == model["parameters"]
        assert (Path(model["checkpoint"]) / "model.safetensors").stat().st_size == model["bytes"]
        for key, path in (("one_shot", model["checkpoint"]), ("fine_tuned", model["checkpoint_fine_tuned"])):
            measured = float((logits(path).argmax(1) == labels).double().mean())
            assert measured == model[f"accuracy_{key}"] > 0.95
        assert not torch.equal(logits(model["checkpoint"]), logits(model["checkpoint_fine_tuned"]))


def test_the_second_network_reuses_the_capture(finished: tuple[Path, dict[str, Any], list[Event]]) -> None:
    _, _, events = finished
    ended = [event.stage for event in events if isinstance(event, Finished)]
    assert ended.count("capture") == ended.count("accumulate") == 1
    assert [stage for stage in ended if stage.startswith("solve")] == ["solve E1-fc-v1"]
    reused = [event.stage for event in events if isinstance(event, Reused)]
    assert "solve E1-fc-v2" in reused


def test_again_on_the_same_run_nothing_is_made_again(finished: tuple[Path, dict[str, Any], list[Event]]) -> None:
    run, summary, _ = finished
    events: list[Event] = []
    again = demo(run=run, on_event=events.append, settings=SMALL)
    assert again["models"] == summary["models"]
    assert again["baseline"] == summary["baseline"]
    assert again["seconds"]["solve"] == again["seconds"]["refit"] == again["seconds"]["fine_tune"] == 0
    assert {event.stage for event in events if isinstance(event, Reused)} >= {"capture", "write E1-fc-v1"}


def test_another_fine_tuning_is_not_taken_for_this_one(
    finished: tuple[Path, dict[str, Any], list[Event]],
) -> None:
    run, summary, _ = finished
    path = summary["models"][1]["checkpoint_fine_tuned"]
    before = logits(path)
    faster = replace(SMALL, targets=(E1_FC_V2,), recipe=replace(QUICK, learning_rate=2e-4))
    assert demo(run=run, settings=faster)["seconds"]["fine_tune"] > 0
    assert not torch.equal(logits(path), before)
    demo(run=run, settings=replace(SMALL, targets=(E1_FC_V2,)))
    assert torch.equal(logits(path), before)  # and the first one again is the same bit for bit


def test_other_images_are_refused_by_the_run(finished: tuple[Path, dict[str, Any], list[Event]]) -> None:
    run, _, _ = finished
    with pytest.raises(RunMismatchError):
        demo(run=run, settings=replace(SMALL, seed=1))


@pytest.mark.usefixtures("_few_images")
def test_without_a_directory_only_the_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    summary = demo(settings=replace(SMALL, targets=(E1_FC_V2,), images=200))
    (kept,) = tmp_path.iterdir()
    assert logits(summary["models"][0]["checkpoint"]).shape == (2000, 10)
    assert not (kept / "activations").exists()
    assert not (kept / "statistics").exists()


@pytest.mark.usefixtures("_few_images")
def test_after_an_error_no_temporary_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupted(event: Event) -> None:
        if isinstance(event, Finished) and event.stage == "capture":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo(on_event=interrupted, settings=replace(SMALL, images=200))
    assert list(tmp_path.iterdir()) == []


def test_the_papers_tables(
    finished: tuple[Path, dict[str, Any], list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four networks, from the capture and the fronts of the small demonstration."""
    run, _, _ = finished
    monkeypatch.setattr("pipelines.lenet_mnist.TRAINING_IMAGES", 1000)
    arguments = ["--images", "500", "--fine-tune-epochs", "1", "--run", str(run), "--json"]
    result = CliRunner().invoke(APPLICATION, [*arguments, "--write", str(tmp_path / "results")])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert [model["parameters"] for model in summary["models"]] == [36_498, 23_894, 27_223, 10_332]
    assert all(model["accuracy_independent"] > 0.9 for model in summary["models"])
    page = (tmp_path / "results" / "lenet_mnist.md").read_text()
    for model in summary["models"]:
        assert f"| {model['name']} | {model['parameters']:,} |" in page
    assert "98.49 %" in page  # the paper's
    record = json.loads((tmp_path / "results" / "lenet_mnist.json").read_text())
    assert [model["name"] for model in record["models"]] == ["E1", "E2", "E1+fc-v1", "E1+fc-v2"]
    assert str(run) not in page + json.dumps(record)
