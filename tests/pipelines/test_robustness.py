"""Attacks do what theory says on a linear model, stay within their bounds, and are told apart in the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import pipelines.mnist as mnist
from pipelines.lenet_stages import SUBJECT, trained_lenet
from pipelines.robustness import Contest, attacks_of, fought, main
from pipelines.robustness_attacks import Attack, OnPixels, attacked, fgsm, pgd
from streamsparse.accumulate import accumulate
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import UsageError
from streamsparse.solve import Constraints, solve
from streamsparse.write.stage import write

APPLICATION = typer.Typer()
APPLICATION.command()(main)


def linear(seed: int, classes: int = 2) -> tuple[nn.Module, Tensor]:
    """A linear classifier of 3×4×4 pixels, float64, and its weight (classes, 48)."""
    weight = torch.randn(classes, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layer = nn.Linear(48, classes, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer), weight


def some_pixels(count: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    pixels = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return low + (high - low) * pixels, torch.arange(count) % 2


@given(seed=st.integers(0, 1000), epsilon=st.floats(0.5, 20))
@settings(max_examples=15)
def test_fgsm_on_a_linear_model_is_known(seed: int, epsilon: float) -> None:
    """Of two classes the gradient is along w_other − w_right, so the margin falls by ε ‖w_right − w_other‖₁."""
    model, weight = linear(seed)
    pixels, labels = some_pixels(6, 0.2, 0.8)  # further than ε from 0 and 1
    found = attacked(model, pixels, labels, fgsm(epsilon))
    difference = weight[1 - labels] - weight[labels]
    assert torch.allclose(found, pixels + epsilon / 255 * difference.sign().view_as(pixels), atol=1e-12)
    margin = _margin(model, pixels, labels) - _margin(model, found, labels)
    assert torch.allclose(margin, epsilon / 255 * difference.abs().sum(1), atol=1e-9)
    # The worst within ε is the corner that FGSM found: PGD gets there too, from wherever it starts, and no further.
    steps = attacked(model, pixels, labels, pgd(epsilon, 4, epsilon, seed))
    assert torch.allclose(steps, found, atol=1e-12)


def _margin(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = model(pixels).detach()
    return logits[torch.arange(len(labels)), labels] - logits[torch.arange(len(labels)), 1 - labels]


@given(epsilon=st.floats(0, 60), steps=st.integers(1, 5), step=st.floats(0, 40), start=st.booleans())
@settings(max_examples=20)
def test_attacks_stay_within_their_bounds(epsilon: float, steps: int, step: float, start: bool) -> None:
    model, _ = linear(3, classes=5)
    pixels, labels = some_pixels(8, 0.0, 1.0)
    found = attacked(model, pixels, labels, Attack(epsilon, steps, step, start, seed=1))
    assert float((found - pixels).abs().max()) <= epsilon / 255 + 1e-12
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pgd_is_stronger_than_fgsm_and_both_than_noise() -> None:
    """On a trained network."""
    pixels, labels = mnist.test().tensors()
    network = OnPixels(trained_lenet(), (0.1307,), (0.3081,), 1)
    shown, labels = network.pixels_of(pixels[:300]), labels[:300]
    wrong = {
        name: float((network(attacked(network, shown, labels, how)).argmax(1) != labels).double().mean())
        for name, how in {
            "noise": Attack(40, 1, 0, random_start=True), "fgsm": fgsm(40), "pgd": pgd(40, 10),
        }.items()
    }  # fmt: skip
    assert wrong["noise"] + 0.1 < wrong["fgsm"] < wrong["pgd"]
    assert torch.allclose(shown * 255, (shown * 255).round(), atol=1e-3)


def test_grey_images_stay_grey() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    network = OnPixels(inner, (0.3,), (0.4,), 3)
    grey = torch.rand(5, 1, 4, 4)
    images = ((grey - 0.3) / 0.4).expand(-1, 3, -1, -1)
    assert torch.allclose(network.pixels_of(images), grey, atol=1e-6)
    assert torch.allclose(network(grey), inner(images), atol=1e-5)
    assert attacked(network, grey, torch.zeros(5).long(), fgsm(4)).shape == (5, 1, 4, 4)


def test_white_box_and_transfer_are_told_apart() -> None:
    """Against a network that is blind to what fools the original, only its own gradients help."""
    weight = torch.zeros(2, 48)
    weight[0, :24], weight[1, :24] = 1.0, -1.0
    models = []
    for shift in (0, 24):
        layer = nn.Linear(48, 2, bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight.roll(shift, 1))
        models.append(OnPixels(nn.Sequential(nn.Flatten(), layer), (0.5,) * 3, (0.5,) * 3, 3))
    pixels = torch.full((4, 3, 4, 4), 0.52)
    labels = torch.zeros(4).long()
    found = fought(Contest(models[0], {"other": models[1]}, pixels, labels, attacks_of([10], 2, None, 0), "cpu"))
    assert [model["name"] for model in found] == ["original", "other"]
    assert found[0]["accuracy"] == found[1]["accuracy"] == 1
    assert found[0]["white_box"]["FGSM 10"] == found[1]["white_box"]["FGSM 10"] == 0
    assert found[0]["transfer"] is None
    assert found[1]["transfer"] == {"FGSM 10": 1.0, "PGD 10": 1.0}


def test_pruned_networks_of_a_run(tmp_path: Path) -> None:
    run, model = tmp_path / "run", trained_lenet()
    capture(
        model, mnist.calibration(), run, images=150, subject=SUBJECT, settings=CaptureSettings(sink="statistics")
    )
    accumulate(run)
    for conv1 in (12, 6):
        solve(run, channels={"conv1": conv1}, constraints=Constraints(leave=("fc2", "fc3")))
        write(run, model=model, name=f"conv1-{conv1}")
    arguments = ["--network", "lenet", "--run", str(run), "--images", "100", "--epsilon", "20", "--steps", "2"]
    result = CliRunner().invoke(APPLICATION, [*arguments, "--write", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert [model["name"] for model in found["models"]] == ["original", "conv1-12", "conv1-6"]
    assert found["models"][0]["accuracy"] > 0.95
    assert all(model["white_box"]["PGD 20"] < model["accuracy"] for model in found["models"])
    page = (tmp_path / "robustness_lenet.md").read_text()
    assert page.count("| conv1-6 |") == 2
    assert str(tmp_path) not in page
    nothing = CliRunner().invoke(APPLICATION, ["--network", "lenet", "--run", str(tmp_path / "none")])
    assert nothing.exit_code == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("wrong", [{"epsilon": -1.0}, {"steps": 0}, {"step": -1.0}])
def test_attacks_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Attack(**{"epsilon": 1.0, "steps": 1, "step": 1.0, "random_start": False, **wrong})  # type: ignore[arg-type]
