"""A training that is killed between two epochs goes on bit for bit; damaged states are refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.recipe import Epoch, Recipe
from pipelines.training import Labelled, flipped, train_classifier
from pipelines.training_state import RECORD, TrainingFolder, TrainingState
from streamsparse.errors import CorruptDataError, UsageError

SGD = Recipe(
    epochs=4, learning_rate=0.05, batch_size=16, shift_pixels=2, flip=True, sgd=True, weight_decay=5e-4, cosine=True
)


def network() -> nn.Module:
    """With everything that has a memory: batch normalisation, and dropout, which draws."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 3)
    )


def pictures() -> Labelled:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, 3, 8, 8, generator=generator), torch.arange(50) % 3


def identical(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


class KilledAfter(TrainingFolder):
    """Dies without a word as soon as the second epoch is kept."""

    def store(self, state: TrainingState, history: list[Epoch]) -> None:
        super().store(state, history)
        if len(history) == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(folder: str) -> None:
    torch.set_num_threads(1)
    train_classifier(network(), pictures(), SGD, keeper=KilledAfter(Path(folder), "net", {"seed": 0}))


class StoppedAfter(TrainingFolder):
    """Fails as soon as the second epoch is kept."""

    def store(self, state: TrainingState, history: list[Epoch]) -> None:
        super().store(state, history)
        if len(history) == 2:
            raise KeyboardInterrupt


def test_adam_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, batch_size=16, shift_pixels=1)
    whole, resumed = network(), network()
    wanted = train_classifier(whole, pictures(), recipe)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(resumed, pictures(), recipe, keeper=StoppedAfter(tmp_path, "net", {}))
    assert not identical(whole, resumed)
    resumed = network()
    assert train_classifier(resumed, pictures(), recipe, keeper=TrainingFolder(tmp_path, "net", {})) == wanted
    assert identical(whole, resumed)


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(str(tmp_path),))
    process.start()
    process.join(200)
    assert process.exitcode == -signal.SIGKILL
    keeper = TrainingFolder(tmp_path, "net", {"seed": 0})
    assert [file.name for file in keeper.path.glob("*.safetensors")] == ["epoch-0002.safetensors"]
    whole, resumed, threads = network(), network(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wanted = train_classifier(whole, pictures(), SGD)
        torch.manual_seed(77)  # whatever the caller drew
        found = train_classifier(resumed, pictures(), SGD, keeper=keeper)
    finally:
        torch.set_num_threads(threads)
    assert found == wanted
    assert identical(whole, resumed)
    again = network()
    assert train_classifier(again, pictures(), SGD, keeper=keeper) == wanted  # nothing is left to do
    assert identical(whole, again)


def test_another_identity_is_another_training(tmp_path: Path) -> None:
    one, other = (TrainingFolder(tmp_path, "net", {"seed": seed}) for seed in (0, 1))
    train_classifier(network(), pictures(), SGD, keeper=one)
    assert one.path != other.path
    fresh = network()
    state = TrainingState(fresh, torch.optim.SGD(fresh.parameters(), 0.1), torch.Generator())
    assert other.restore(state) == []


@pytest.mark.parametrize("damage", ["tensors", "record", "missing"])
def test_damaged_states_are_refused(damage: str, tmp_path: Path) -> None:
    keeper = TrainingFolder(tmp_path, "net", {})
    train_classifier(network(), pictures(), SGD, keeper=keeper)
    tensors = keeper.path / json.loads((keeper.path / RECORD).read_text())["file"]
    if damage == "tensors":
        content = bytearray(tensors.read_bytes())
        content[-3] ^= 1
        tensors.write_bytes(content)
    elif damage == "record":
        (keeper.path / RECORD).write_text("{")
    else:
        tensors.unlink()
    with pytest.raises(CorruptDataError, match="cannot be read") as caught:
        train_classifier(network(), pictures(), SGD, keeper=keeper)
    assert "begins anew" in str(caught.value)


def test_the_rate_falls_along_a_cosine() -> None:
    rates = [SGD.learning_rate_in(epoch) for epoch in (0, 1, 2, 3, 4)]
    assert rates == pytest.approx([0.05, 0.05 * 0.8535534, 0.025, 0.05 * 0.1464466, 0.0], abs=1e-8)


def test_one_step_of_sgd_is_the_textbooks() -> None:
    """v ← g + λθ, θ ← θ − ηv in the first step; the second adds 0.9 v."""
    linear = nn.Linear(192, 3)
    model = nn.Sequential(nn.Flatten(), linear)
    images, labels = pictures()
    theta, velocity = linear.weight.detach().clone().double(), torch.zeros(3, 192, dtype=torch.float64)
    bias, bias_velocity = linear.bias.detach().clone().double(), torch.zeros(3, dtype=torch.float64)
    flat = images.flatten(1).double()
    recipe = Recipe(epochs=2, learning_rate=0.1, batch_size=50, halve_every=9, sgd=True, weight_decay=0.01)
    train_classifier(model, (images, labels), recipe)
    for _ in range(2):
        excess = (flat @ theta.T + bias).softmax(1) - nn.functional.one_hot(labels, 3)
        velocity = 0.9 * velocity + excess.T @ flat / 50 + 0.01 * theta
        bias_velocity = 0.9 * bias_velocity + excess.mean(0) + 0.01 * bias
        theta, bias = theta - 0.1 * velocity, bias - 0.1 * bias_velocity
    assert torch.allclose(linear.weight.double(), theta, atol=1e-6)
    assert torch.allclose(linear.bias.double(), bias, atol=1e-6)


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.arange(400 * 3 * 2 * 5, dtype=torch.float32).view(400, 3, 2, 5)
    found = flipped(images, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(own, image.flip(2)) for own, image in zip(found, images, strict=True)]
    same = [torch.equal(own, image) for own, image in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"weight_decay": -1e-4}, {"one_cycle": True, "cosine": True}])
def test_recipes_that_contradict_themselves(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="contradicts"):
        Recipe(**wrong)  # type: ignore[arg-type]
