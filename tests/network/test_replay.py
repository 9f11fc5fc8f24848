"""Replaying: the same outputs to the bit, with less computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.network import find_groups
from streamsparse.network.replay import RECORD_BYTES, record, replay
from tests.small import ConcatNet, SmallNet, TwiceNet, build, random_images

BATCHES = [random_images(count, seed=count) for count in (10, 9, 6)]


def changed_copy(model: nn.Module, layer: str) -> nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_submodule(layer).weight.mul_(0.7)  # type: ignore[operator]
    return changed


def counted_calls(model: nn.Module) -> list[str]:
    """Layers that really compute, in order; a layer that gives its recorded output does not."""
    calls: list[str] = []

    def counting(name: str, compute: object) -> object:
        def forward(inputs: Tensor) -> Tensor:
            calls.append(name)
            return compute(inputs)  # type: ignore[operator,no-any-return]

        return forward

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.forward = counting(name, module.forward)  # type: ignore[assignment]
    return calls


@pytest.mark.parametrize(
    ("kind", "layer"),
    [(SmallNet, "conv2"), (SmallNet, "fc2"), (ConcatNet, "mix"), (TwiceNet, "shared"), (TwiceNet, "head")],
)
def test_outputs_are_those_of_the_whole_pass(kind: type[nn.Module], layer: str) -> None:
    model = build(kind)
    recording = record(model, find_groups(model, BATCHES[0]).layers, BATCHES)
    with torch.no_grad():
        assert all(torch.equal(a, model(b)) for a, b in zip(recording.outputs, BATCHES, strict=True))
        expected = [changed_copy(model, layer)(batch) for batch in BATCHES]
    found = list(replay(changed_copy(model, layer), [layer], recording))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], recording.outputs[0])


def test_what_comes_before_is_not_computed_again() -> None:
    model = build(SmallNet)
    recording = record(model, find_groups(model, BATCHES[0]).layers, BATCHES)
    changed = changed_copy(model, "fc1")
    calls = counted_calls(changed)
    list(replay(changed, ["fc1"], recording))
    assert calls == ["fc1", "fc2"] * len(BATCHES)


def test_a_layer_that_is_called_twice_is_computed() -> None:
    model = build(TwiceNet)
    recording = record(model, find_groups(model, BATCHES[0]).layers, BATCHES)
    assert set(recording.recorded) == {"stem", "head"}


def test_outputs_that_do_not_fit_are_computed_again() -> None:
    model = build(SmallNet)
    layers = find_groups(model, BATCHES[0]).layers
    bytes_of_fc1 = 25 * 12 * 4
    recording = record(model, layers, BATCHES, limit_bytes=bytes_of_fc1 + 10)
    assert set(recording.recorded) == {"fc1"}
    found = list(replay(changed_copy(model, "fc2"), ["fc2"], recording))
    with torch.no_grad():
        assert torch.equal(found[1], changed_copy(model, "fc2")(BATCHES[1]))
    assert set(record(model, layers, BATCHES, limit_bytes=RECORD_BYTES).recorded) == set(layers)


@pytest.mark.parametrize("result", [None, (torch.zeros(10, 2),), torch.zeros(()), torch.zeros(3, 2)])
def test_a_model_that_returns_no_batch_is_refused(result: object) -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> object:
            return result

    with pytest.raises(ModelError, match="one tensor, batch first"):
        record(Odd(), {}, BATCHES)
