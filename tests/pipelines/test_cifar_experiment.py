"""The CIFAR experiment from data files to tables, small: trained, captured, cut, tuned, from scratch, resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

import pipelines.cifar_command as options
import pipelines.cifar_stages as stages
import pipelines.cifar_tuning as tuning
from pipelines.cifar_experiment import chosen_cuts
from pipelines.cifar_tables import comparison_rows, epoch_rows, filled
from streamsparse.capture import calibration_images
from streamsparse.errors import UsageError
from streamsparse.intake.data import open_data
from streamsparse.store import Run
from streamsparse.write.checkpoint import load
from tests.pipelines.small_pictures import TINY, Tiny, write_cifar

TYPED = options.Options(
    dataset="cifar10", data_root=None, weights=None, cut=[], sparsity=[], counts=None, images=120, unseen_images=60,
    rounds=1, stages=None, seed=0, epochs=3, fine_tune_epochs=2, fine_tune_rate=0.01, tune_original=True,
    one_cycle=False, teacher_share=0.9, from_scratch=1, mixed_precision=False, device="cpu", threads=None,
    run=None, write=None, as_json=True, dry_run=False,
)  # fmt: skip


def typed(capsys: pytest.CaptureFixture[str], **changes: Any) -> dict[str, Any]:
    """What the command prints as its last line."""
    options.run_recipe(TINY, "tiny_cifar10", replace(TYPED, **changes))
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.filterwarnings("ignore:Can't initialize NVML")
def test_every_row_is_made_shown_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run, results = write_cifar(tmp_path / "data"), tmp_path / "run", tmp_path / "results"
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps({"conv(1)": {"features.0": 5}}))
    places: dict[str, Any] = {"data_root": root, "run": run, "write": results, "counts": counts}
    found = typed(capsys, **places)

    assert found["baseline"]["accuracy"] > 0.5  # of ten classes: the training worked
    assert found["baseline"]["parameters"] == sum(p.numel() for p in Tiny().parameters())
    by_name = {model["name"]: model for model in found["models"]}
    assert list(by_name) == ["conv(1)", "conv_all+fc", "sparsity-0.6"]
    assert by_name["conv(1)"]["channels"] == {"features.0": 5, "features.4": 10, "features.8": 12}
    assert by_name["conv(1)"]["local_sparsity"] == pytest.approx(1 - (5 * 90 + 10) / (8 * 90 + 10))
    for name, least in (("conv_all+fc", 0.5), ("sparsity-0.6", 0.6)):
        assert least <= by_name[name]["sparsity"] < least + 0.2
    for model in (found["baseline"], *found["models"]):
        assert len(model["accuracy_fine_tuned_by_epoch"]) == 2
    assert found["baseline"]["accuracy_fine_tuned"] > 0.5
    for model in found["models"]:
        assert model["accuracy_fine_tuned"] == model["accuracy_fine_tuned_by_epoch"][-1]
        assert len(model["accuracy_from_scratch_by_epoch"]) == 1
        loaded = load(model["checkpoint_fine_tuned"], Tiny())
        assert sum(p.numel() for p in loaded.parameters()) == model["parameters"]
        assert model["bytes"] < found["baseline"]["bytes"]
        assert set(model["speed_up"]) == {"1", "32"}
    _pages_hold_everything(results, found, replace(TYPED, **places))
    _later_commands_open_the_same_data(run, root)

    def refusing(*_: object, **__: object) -> None:
        raise AssertionError

    for module, function in ((stages, "improve"), (stages, "write"), (tuning, "_trained")):
        monkeypatch.setattr(module, function, refusing)
    again = typed(capsys, **places)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    assert again["seconds"]["fine_tune"] == found["seconds"]["fine_tune"] > 0
    assert "accuracy_fine_tuned" not in typed(capsys, **places, tune_original=False)["baseline"]


def _pages_hold_everything(results: Path, found: dict[str, Any], made: options.Options) -> None:
    page, record = (results / f"tiny_cifar10.{kind}" for kind in ("md", "json"))
    text, request = page.read_text(), options.request_of(TINY, made)
    rows = [*comparison_rows(found, request), *epoch_rows(found, request)]
    assert len(rows) == 4 + 9  # original and three networks; heading, its curve, two for each network, the paper's
    assert all("| " + " | ".join(row) + " |" in text for row in rows)
    assert "| 91.00 % |" in text
    assert "92.00 % (1), 93.00 % (20)" in text
    assert "1.25×" in text
    for column in (
        "One-shot: 120",
        "Tuned: 2 epochs",
        "The original was tuned",
        "Scratch: ",
        "Local: ",
        "Faster: ",
        "(its table 3)",
    ):
        assert column in text
    kept = json.loads(record.read_text())
    assert "--epochs 3 --fine-tune-epochs 2" in kept["command"]
    assert str(results.parent) not in text + record.read_text()
    assert kept["models"][0]["accuracy_one_shot"] == found["models"][0]["accuracy_one_shot"]
    assert kept["environment"]["versions"]["torch"]


def _later_commands_open_the_same_data(run: Path, root: Path) -> None:
    manifest = Run.at(run / "run").manifest()
    again = open_data(manifest["data"]["spec"], split="train")
    images = calibration_images(again, images=120)
    assert images.digest() == manifest["data"]["digest"]
    assert str(root) in manifest["data"]["spec"]


def test_cuts_by_name_and_by_sparsity() -> None:
    assert [cut.name for cut in chosen_cuts(TINY, ["conv_all+fc"], [0.7, 0.8], {})] == [
        "conv_all+fc", "sparsity-0.7", "sparsity-0.8",
    ]  # fmt: skip
    for names, sparsities in ((["conv99"], []), ([], [1.0])):
        with pytest.raises(UsageError):
            chosen_cuts(TINY, names, sparsities, {})


@pytest.mark.parametrize("recipe", ["vgg16_cifar10", "resnet18_cifar10"])
def test_a_dry_run_touches_nothing(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(f"pipelines.{recipe}", fromlist=["main"])
    application = typer.Typer()
    application.command()(module.main)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", None)  # whoever downloads fails
    arguments = ["--dry-run", "--json", "--run", "run", "--write", "results", "--sparsity", "0.9"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout.splitlines()[-1])["plan"]
    assert plan["download"] is True
    assert plan["models"][0]["parameters"] == int(0.1 * plan["baseline"]["parameters"])
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", unreachable)
    with pytest.raises(typer.Exit) as left:
        options.run_recipe(TINY, "tiny_cifar10", replace(TYPED, data_root=tmp_path))
    assert left.value.exit_code == 1
    printed = capsys.readouterr()
    said = json.loads(printed.out.splitlines()[-1])
    assert said["error"] == "StorageError"
    assert "--data-root" in said["remedy"]
    assert "cifar-10-batches-py" in said["remedy"]
    assert "no route to host" in printed.err


@pytest.mark.parametrize("content", ["{", "[1]", '{"conv(1)": {"features.0": "many"}}'])
def test_counts_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    file.write_text(content)
    with pytest.raises(UsageError, match="counts"):
        options.read_counts(file)


def test_the_small_data_are_what_streamsparse_reads(tmp_path: Path) -> None:
    assert len(open_data("cifar10", data_root=write_cifar(tmp_path))) == 400  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Can't initialize NVML")
def test_nothing_is_trained_where_nothing_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights from a file, one free sparsity as predicted, no fine-tuning: only the original's weights are read."""
    root, weights = write_cifar(tmp_path / "data"), tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(Tiny().state_dict(), weights)
    monkeypatch.setattr("pipelines.training._train", None)
    monkeypatch.setattr(stages, "improve", None)
    nothing: dict[str, Any] = {
        "rounds": 0, "fine_tune_epochs": 0, "from_scratch": 0, "write": tmp_path / "results",
    }  # fmt: skip
    found = typed(capsys, data_root=root, weights=weights, sparsity=[0.3], images=60, **nothing)
    (model,) = found["models"]
    assert model["accuracy_fine_tuned"] is None
    assert model["checkpoint"] is None  # without --run nothing is kept
    assert 0.3 <= model["sparsity"] < 0.8  # of random weights some channels are worth nothing
    assert found["baseline"]["origin"] == "weights from tiny.safetensors"
    assert found["seconds"]["fine_tune"] == found["seconds"]["from_scratch"] == 0
    page = (tmp_path / "results" / "tiny_cifar10_sparsity_0.3.md").read_text()
    assert "One-shot: 60 training" in page
    for left_out in ("Tuned: ", "Scratch: ", "Local: ", "(its table 3)"):
        assert left_out not in page
    typed(capsys, data_root=root, weights=weights, cut=["conv(1)"], images=60, **nothing)
    page = (tmp_path / "results" / "tiny_cifar10_conv_1.md").read_text()
    assert "92.00 % (1), 93.00 % (20)" in page  # the paper's column, and ours beside it, stay
    assert "Tuned: the paper's, with its number of epochs where the text tells; ours were not." in page


def test_columns_that_say_nothing_are_left_out_and_ours_stays_beside_the_papers() -> None:
    rows = [
        ("network", "one-shot", "paper", "tuned", "paper", "faster"),
        ("original", "–", "95 %", "–", "–", "–"),
        ("small", "–", "–", "–", "–", "2×"),
    ]
    assert filled(rows) == [
        ("network", "one-shot", "paper", "faster"),
        ("original", "–", "95 %", "–"),
        ("small", "–", "–", "2×"),
    ]


def test_pages_are_named_by_what_was_asked_for() -> None:
    """So that the cuts of the paper and free sparsities do not replace one another."""
    for changes, name in (
        ({}, "tiny"),
        ({"cut": ["conv(1)"], "sparsity": [0.5]}, "tiny"),
        ({"cut": ["conv(1)"]}, "tiny_conv_1"),
        ({"cut": ["conv(1)", "conv_all+fc"]}, "tiny_cuts"),
        ({"sparsity": [0.5, 0.75], "dataset": "fashion-mnist"}, "tiny_on_fashion_mnist_sparsities"),
        ({"sparsity": [0.75]}, "tiny_sparsity_0.75"),
        ({"dataset": "npz:/data/own.npz"}, "tiny_on_npz"),
    ):
        assert options.result_name("tiny", replace(TYPED, **changes)) == name  # type: ignore[arg-type]
