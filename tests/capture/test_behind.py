"""Statistics behind a partly refitted model: the right ones, and no layer run that they do not need."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamsparse.capture import CaptureSettings, Responses, calibration_images, plan_stream, sum_behind
from streamsparse.errors import ModelError
from streamsparse.kernels.folds import total
from streamsparse.network import find_groups
from streamsparse.store.stream import StreamPlan
from tests.small import SmallNet, TwiceNet, build, random_images

IMAGES = random_images(23)
SETTINGS = CaptureSettings("float32", batch_images=5)


def plan_of(model: nn.Module, *layers: str) -> StreamPlan:
    graph = find_groups(model, IMAGES[:1])
    return plan_stream(model, graph, IMAGES[:1], len(IMAGES), SETTINGS, stream="behind", layers=layers)


def otherwise(model: nn.Module) -> nn.Module:
    """The same model with other weights."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    for parameter in changed.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return changed


def summed(plan: StreamPlan, partial: nn.Module, original: nn.Module, **options: Any) -> Any:
    images = calibration_images(IMAGES, images=len(IMAGES), seed=0)
    responses = Responses(original, plan)
    sums = sum_behind(plan, partial, responses, images, folds=3, product_dtype="float64", **options)
    ordered = torch.cat(list(images.batches([range(len(IMAGES))])))
    return {layer: total(folds) for layer, folds in sums.items()}, ordered


def test_inputs_of_the_one_model_and_outputs_of_the_other() -> None:
    """Against unfold and products in float64, from whole passes."""
    original = build(SmallNet)
    partial = otherwise(original)
    found, images = summed(plan_of(original, "conv2", "fc1"), partial, original)
    with torch.no_grad():
        behind = [F.relu(model.norm1(model.conv1(images))) for model in (partial, original)]
        wanted = {"conv2": (F.unfold(behind[0], 3, stride=2), original.conv2(behind[1]).flatten(2))}
        flat = [
            F.relu(model.norm2(model.conv2(x))).flatten(1)
            for model, x in zip((partial, original), behind, strict=True)
        ]
        wanted["fc1"] = (flat[0][:, :, None], original.fc1(flat[1])[:, :, None])
    assert set(found) == set(wanted)
    for layer, (inputs, outputs) in wanted.items():
        x, y = (part.transpose(1, 2).flatten(0, 1).double() for part in (inputs, outputs))
        for name, sums in (("gram", x.T @ x), ("cross", x.T @ y)):
            got = getattr(found[layer], name)[0]
            assert (got - sums).norm() < 1e-6 * sums.norm(), (layer, name)


def calls_of(model: nn.Module) -> Counter[str]:
    """Calls of every leaf module from now on."""
    seen: Counter[str] = Counter()
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda *_, name=name: seen.update([name]))
    return seen


def test_what_lies_behind_the_last_layer_is_not_run() -> None:
    original = build(SmallNet)
    partial = otherwise(original)
    plan = plan_of(original, "conv2")
    advanced: list[int] = []
    seen = [calls_of(model) for model in (original, partial)]
    summed(plan, partial, original, advance=advanced.append)
    assert advanced == [5, 5, 5, 5, 3]
    assert seen == [{"conv1": 5, "norm1": 5, "conv2": 5}] * 2
    assert not original.get_submodule("conv2")._forward_hooks


def test_a_layer_that_is_called_twice_is_summed_twice() -> None:
    original = build(TwiceNet)
    plan = plan_of(original, "shared")
    assert plan.layers[0].calls == 2
    seen = calls_of(original)
    found, _ = summed(plan, original, original)
    assert seen == {"stem": 10, "shared": 20}  # as the original and as the refitted one
    assert found["shared"].count == 2 * len(IMAGES) * 64


class Deciding(TwiceNet):
    """Calls its layer once where it was announced twice."""

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.shared(F.relu(self.stem(images))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def test_a_layer_that_is_not_called_as_planned_is_an_error() -> None:
    original, other = build(TwiceNet), build(Deciding)
    with pytest.raises(ModelError, match="another number of times"):
        summed(plan_of(original, "shared"), other, original)
    assert not other.get_submodule("shared")._forward_hooks
