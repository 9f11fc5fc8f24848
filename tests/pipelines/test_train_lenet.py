"""The command that trains LeNet, from images to a file that loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

import pipelines.mnist as mnist
from pipelines.lenet import LeNet
from pipelines.mnist import calibration
from pipelines.mnist import test as load_test
from pipelines.recipe import Recipe
from pipelines.train_lenet import main, split_validation, train_lenet
from pipelines.training import accuracy

APPLICATION = typer.Typer()
APPLICATION.command()(main)


@pytest.mark.parametrize(("count", "training"), [(60_000, 50_000), (20_000, 16_667), (5, 5)])
def test_the_last_sixth_is_held_back(count: int, training: int) -> None:
    numbers = torch.arange(count)
    first, last = split_validation((numbers, numbers))
    assert len(first[1]) == training
    assert torch.equal(torch.cat([first[0], last[0]]), numbers)


def test_validation_images_are_not_trained_on() -> None:
    images, labels = calibration().tensors()
    images, labels = images[:600], labels[:600]
    recipe = Recipe(epochs=1, seed=5)
    trained = train_lenet((images, labels), recipe)
    changed = images.clone()
    changed[500:] = 0
    again = train_lenet((changed, labels), recipe)
    assert trained.training_images == 500
    assert torch.equal(trained.model.fc3.weight, again.model.fc3.weight)
    assert trained.validation_accuracy != again.validation_accuracy


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "find_mnist", lambda data_root: None)  # the embedded images only
    out = tmp_path / "lenet.safetensors"
    arguments = ["--epochs", "1", "--seed", "1", "--seed", "2", "--out", str(out), "--json"]
    result = CliRunner().invoke(APPLICATION, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    model = LeNet()
    model.load_state_dict(load_file(out))
    assert summary["accuracy"] == accuracy(model, load_test().tensors()) > 0.9
    validated = summary["validation_accuracy_by_seed"]
    assert validated[str(summary["recipe"]["seed"])] == max(validated.values())
    assert summary["training_images"] == 16_667


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-root", "{tmp}"], "no MNIST"),
        (["--out", "{tmp}/absent/lenet.safetensors"], "cannot be written"),
        (["--epochs", "0"], "out of range"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    filled = [argument.format(tmp=tmp_path) for argument in ["--out", f"{tmp_path}/x", *arguments]]
    result = CliRunner().invoke(APPLICATION, filled)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
