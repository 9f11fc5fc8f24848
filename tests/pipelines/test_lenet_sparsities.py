"""LeNet at any sparsity, small: the budget is kept, tuning helps, a second call makes nothing again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import pipelines.lenet_stages as stages
import pipelines.mnist as mnist
from pipelines import lenet_sparsities
from pipelines.lenet_sparsities import main, rows_of

APPLICATION = typer.Typer()
APPLICATION.command()(main)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the embedded images."""
    whole = {"calibration": mnist.calibration(), "test": mnist.test()}
    few = {name: mnist.Mnist(data.images[:800], data.labels[:800]) for name, data in whole.items()}
    training = few["calibration"].images, few["calibration"].labels
    monkeypatch.setattr(mnist, "load_mnist", lambda split, data_root=None: training)
    monkeypatch.setattr(lenet_sparsities, "UNSEEN_IMAGES", 200)
    for name, data in few.items():
        monkeypatch.setattr(mnist, name, lambda data=data: data)


def typed(run: Path, written: Path) -> dict[str, Any]:
    """What the command prints at its end."""
    options = ["--sparsity", "0.9", "--sparsity", "0.95", "--repeats", "2", "--fine-tune-epochs", "1"]
    options += ["--run", str(run), "--write", str(written), "--json"]
    result = CliRunner().invoke(APPLICATION, options)
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return printed


@pytest.mark.slow
def test_budgets_are_kept_and_work_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = typed(tmp_path / "run", tmp_path)
    assert found["baseline"]["parameters"] == 61_706
    for wanted, model in zip((0.9, 0.95), found["models"], strict=True):
        assert model["sparsity"] >= wanted
        assert set(model["channels"]) == {"conv0", "conv1", "fc1", "fc2"}
        assert set(model["accuracy_fine_tuned_by_seed"]) == {"0", "1"}
        assert model["accuracy_fine_tuned"] > model["accuracy_one_shot"] - 0.05
        assert model["measured_losses"] == sorted(model["measured_losses"], reverse=True)
    assert found["models"][0]["accuracy_one_shot"] > found["models"][1]["accuracy_one_shot"] > 0.5
    page, record = (tmp_path / f"lenet_sparsities.{kind}" for kind in ("md", "json"))
    assert json.loads(record.read_text())["models"] == found["models"]
    assert all("| " + " | ".join(row) + " |" in page.read_text() for row in rows_of(found))
    assert "--sparsity 0.9 --sparsity 0.95 --repeats 2" in page.read_text()

    def refusing(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(stages, "fine_tune", refusing)
    again = typed(tmp_path / "run", tmp_path)
    assert {**again, "seconds": None} == {**found, "seconds": None}
