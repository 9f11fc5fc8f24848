"""Outputs of the original for passes to come: the right ones, no more than fit, and no needless run."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamsparse.capture import CaptureSettings, Responses, plan_stream
from streamsparse.network import find_groups
from streamsparse.store.stream import CapturedLayer, StreamPlan
from tests.small import SmallNet, TwiceNet, build, random_images

IMAGES = random_images(12)
BATCHES = [IMAGES[start : start + 5] for start in range(0, 12, 5)]


class Chain(nn.Module):
    """Five convolutions with an activation in place behind each."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 4, 4, 3, 4, 2)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.head = nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = F.relu(layer(images), inplace=True)
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


def plan_of(model: nn.Module) -> StreamPlan:
    settings = CaptureSettings("float32", batch_images=5)
    return plan_stream(model, find_groups(model, IMAGES[:1]), IMAGES[:1], len(IMAGES), settings)


def runs_of(model: nn.Module) -> Counter[str]:
    """Runs of the model from now on."""
    seen: Counter[str] = Counter()
    model.register_forward_pre_hook(lambda *_: seen.update(["runs"]))
    return seen


def outputs_of(model: nn.Module, layer: str, images: Tensor) -> list[Tensor]:
    """Straight from a hook, before anything works in place."""
    found: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda *call: found.append(call[2].clone()))
    with torch.no_grad():
        model(images)
    hook.remove()
    return found


def bytes_of(plan: StreamPlan, *layers: str) -> int:
    """Of the outputs for all images, float32."""
    sizes = {layer.geometry.layer: torch.Size(layer.geometry.output_shape).numel() for layer in plan.layers}
    return sum(4 * plan.images * sizes[layer] for layer in layers)


def asked(responses: Responses, layers: list[CapturedLayer]) -> None:
    """One pass for the layers, checked against the model's own outputs, to the bit."""
    wanted = {layer.geometry.layer: layer for layer in layers}
    for number, batch in enumerate(BATCHES):
        with torch.inference_mode():
            found = responses.of(wanted, number, batch)
        own = {
            (layer, call): output
            for layer in wanted
            for call, output in enumerate(outputs_of(responses._model, layer, batch))
        }
        assert found.keys() == own.keys()
        assert all(torch.equal(found[key], own[key]) for key in own)


def test_layers_ahead_are_held_as_far_as_they_fit() -> None:
    """Five layers: the second and the third fit behind the first, the fourth does not."""
    model = build(Chain)
    plan = plan_of(model)
    names = [layer.geometry.layer for layer in plan.layers]
    assert names == ["layers.1", "layers.2", "layers.3", "layers.4", "head"]
    responses = Responses(model, plan, bytes_of(plan, "layers.2", "layers.3"))
    runs = runs_of(model)
    expected = [1, 0, 0, 1, 0]  # runs of the original by pass, per batch; the check makes one more of its own
    for layer, own in zip(plan.layers, expected, strict=True):
        before = runs["runs"]
        asked(responses, [layer])
        assert runs["runs"] - before == len(BATCHES) * (own + 1), layer.geometry.layer
    assert all(not held for held in responses._held.values())


@pytest.mark.parametrize("ahead_bytes", [0, 2**30])
def test_two_layers_at_once_and_none_between(ahead_bytes: int) -> None:
    """A pass may ask for several layers, and layers whose statistics lie in the run are asked for by none."""
    model = build(Chain)
    plan = plan_of(model)
    responses = Responses(model, plan, ahead_bytes)
    asked(responses, list(plan.layers[:2]))
    asked(responses, [plan.layers[3]])
    held = [key for outputs in responses._held.values() for key in outputs]
    assert {name for name, _ in held} == ({"head"} if ahead_bytes else set())
    asked(responses, [plan.layers[4]])


def test_a_layer_that_is_called_twice() -> None:
    model = build(TwiceNet)
    responses = Responses(model, plan_of(model))
    for layer in plan_of(model).layers:
        asked(responses, [layer])


def test_the_original_ends_at_the_last_layer_that_is_held() -> None:
    model = build(SmallNet)
    plan = plan_of(model)
    first, second, *_ = plan.layers
    seen: Counter[str] = Counter()
    for layer in plan.layers:
        name = layer.geometry.layer
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.update([name]))
    responses = Responses(model, plan, bytes_of(plan, second.geometry.layer))
    with torch.inference_mode():
        responses.of({first.geometry.layer: first}, 0, BATCHES[0])
    assert seen == {first.geometry.layer: 1, second.geometry.layer: 1}
