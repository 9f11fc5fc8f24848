"""LeNet is the paper's, and the shipped weights are as good as the README says."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load
from torch import nn

from pipelines.lenet import LeNet
from pipelines.lenet_recipes import SHORT_FINE_TUNING, taught_by
from pipelines.mnist import calibration
from pipelines.mnist import test as load_test
from pipelines.training import accuracy, fine_tune

DATA = files("pipelines") / "data"


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters() -> None:
    assert parameters(LeNet()) == 61_706


@pytest.mark.parametrize(
    ("channels", "first", "second", "expected"),
    [(8, 120, 84, 36_498), (4, 120, 84, 23_894), (8, 104, 43, 27_223), (8, 40, 18, 10_332)],
)
def test_narrower_layers_run_as_they_are(channels: int, first: int, second: int, expected: int) -> None:
    """The paper's pruned networks; also its parameter counts."""
    model = LeNet()
    model.conv1 = nn.Conv2d(6, channels, kernel_size=5)
    model.fc1, model.fc2 = nn.Linear(channels * 25, first), nn.Linear(first, second)
    model.fc3 = nn.Linear(second, 10)
    assert parameters(model) == expected
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_a_channel_of_conv1_is_25_neighbouring_inputs_of_fc1() -> None:
    model = LeNet().eval()
    torch.manual_seed(0)
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        model.conv1.weight[3] = -1  # on inputs that are never negative: ReLU turns the channel off
        weights = model.state_dict()
        weights["conv1.bias"][3] = -1
        before = model(images)
        model.fc1.weight[:, 75:100] = 1e3
        assert torch.equal(model(images), before)


def shipped_lenet() -> LeNet:
    weights = load((DATA / "lenet_mnist.safetensors").read_bytes())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    model = LeNet()
    model.load_state_dict(weights, strict=True)
    return model


def test_shipped_weights() -> None:
    readme = (DATA / "README.md").read_text()
    content = (DATA / "lenet_mnist.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() in readme
    measured = accuracy(shipped_lenet(), load_test().tensors())
    assert measured >= 0.99
    # One image of 10,000 may fall differently where another processor rounds differently.
    stated = float(readme.split("Test accuracy: **")[1].split(" %")[0])
    assert measured * 100 == pytest.approx(stated, abs=0.011)


def test_short_fine_tuning_repairs_a_network_cut_without_refit() -> None:
    original, cut = shipped_lenet(), shipped_lenet()
    cut.conv1, cut.fc1 = nn.Conv2d(6, 4, kernel_size=5), nn.Linear(100, 120)
    cut.load_state_dict(
        original.state_dict()
        | {"conv1.weight": original.conv1.weight[:4], "conv1.bias": original.state_dict()["conv1.bias"][:4]}
        | {"fc1.weight": original.fc1.weight[:, :100]}
    )
    images, labels = calibration().tensors()
    unseen = images[-2000:], labels[-2000:]
    before = accuracy(cut, unseen)
    recipe = replace(SHORT_FINE_TUNING, batch_size=64)
    fine_tune(cut, (images[:4000], labels[:4000]), recipe, distillation=taught_by(original))
    after = accuracy(cut, unseen)
    assert before < 0.8
    assert after > 0.95
