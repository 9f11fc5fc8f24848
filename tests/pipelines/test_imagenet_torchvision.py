"""A classifier of torchvision on a small folder of images, from end to end: planned, pruned, written, resumed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models._api import BUILTIN_MODELS
from torchvision.models.resnet import BasicBlock
from typer.testing import CliRunner

import pipelines.imagenet_torchvision_stages as stages
from pipelines.imagenet_torchvision import main, rows_of
from streamsparse.intake.models import build_model
from streamsparse.write.checkpoint import load

MODEL = "narrow_resnet18?num_classes=3"
APPLICATION = typer.Typer()
APPLICATION.command()(main)


class NarrowResNet(torchvision.models.ResNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's own, with one block in a stage and a sixteenth of the channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes)
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(32, num_classes)

    def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> nn.Sequential:
        self.inplanes: int = min(self.inplanes, planes // 16)  # the stem's 64 are 4
        stage: nn.Sequential = super()._make_layer(block, planes // 16, *rest, **options)
        return stage


@functools.wraps(torchvision.models.resnet18)
def narrow_resnet18(*, weights: None = None, num_classes: int = 1000) -> nn.Module:
    assert weights is None
    return NarrowResNet(num_classes)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full ResNet-18 takes minutes."""
    monkeypatch.setitem(BUILTIN_MODELS, "narrow_resnet18", narrow_resnet18)


def write_folder(root: Path) -> Path:
    """Three classes of noise in three colours, 72×64 pixels: 20 images of each to calibrate, 6 to test."""
    generator = np.random.default_rng(4)
    for split, count in (("train", 20), ("val", 6)):
        for number, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 128, (72, 64, 3))
                pixels[:, :, 2 - number] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def write_weights(file: Path) -> Path:
    torch.manual_seed(0)
    save_file(build_model(f"torchvision:{MODEL}").state_dict(), file)
    return file


def arguments(root: Path, weights: Path) -> list[str]:
    return [
        "--model", MODEL, "--weights", str(weights), "--data", f"imagefolder:{root}", "--size", "64",
        "--images", "48", "--unseen-images", "12", "--rounds", "1", "--passes", "2", "--json",
    ]  # fmt: skip


@pytest.mark.slow
def test_from_folder_to_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = arguments(write_folder(tmp_path / "images"), write_weights(tmp_path / "weights.safetensors"))
    typed += ["--sparsity", "0.4", "--run", str(tmp_path / "run"), "--write", str(tmp_path / "results")]
    result = CliRunner().invoke(APPLICATION, typed)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    (model,) = found["models"]
    assert 0.4 <= model["sparsity"] < 0.6
    assert model["test_images"] == 18
    assert (
        model["parameters"] + round(model["sparsity"] * found["baseline"]["parameters"])
        == (found["baseline"]["parameters"])
    )
    loaded = load(model["checkpoint"], build_model(f"torchvision:{MODEL}"))
    assert sum(p.numel() for p in loaded.parameters()) == model["parameters"]
    page = (tmp_path / "results" / "imagenet_torchvision_narrow_resnet18.md").read_text()
    assert all("| " + " | ".join(row) + " |" in page for row in rows_of(found))
    assert str(tmp_path) not in page
    assert "--sparsity 0.4" in page

    def refusing(*_: object, **__: object) -> None:
        raise AssertionError

    for function in ("improve", "refit", "evaluate"):
        monkeypatch.setattr(stages, function, refusing)
    again = CliRunner().invoke(APPLICATION, typed)
    assert json.loads(again.stdout.splitlines()[-1])["models"] == found["models"]


def test_a_plan_reads_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [
        "--model",
        MODEL,
        "--data",
        "imagefolder:nowhere",
        "--size",
        "64",
        "--run",
        "run",
        "--dry-run",
        "--json",
    ]
    result = CliRunner().invoke(APPLICATION, typed)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout.splitlines()[-1])["plan"]
    assert plan["groups"]["conv1"] == 4
    assert plan["models"][0]["parameters"] == int(0.7 * plan["parameters"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--data", "imagefolder:{}/train", "--test", "imagefolder:{}/train"], "are the calibration images"),
        (["--test", "imagefolder:{}/val/red"], "no labels"),
        (["--weights", "{}/none.safetensors"], "no weights file"),
    ],
)
def test_what_cannot_be_used_is_refused(change: list[str], said: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    typed = arguments(root, write_weights(tmp_path / "weights.safetensors"))
    typed += [part.format(root) for part in change]
    result = CliRunner().invoke(APPLICATION, [*typed, "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert said in json.loads(result.stdout.splitlines()[-1])["summary"]
    assert not (tmp_path / "run").exists()


def test_untrained_networks_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(APPLICATION, ["--data", f"imagefolder:{tmp_path}", "--json"])
    assert result.exit_code == 2
    assert "untrained" in result.stdout
