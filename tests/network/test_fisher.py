"""Fisher traces against Jacobians, class by class and image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.network import fisher
from streamsparse.network.fisher import fisher_traces
from tests.small import SmallNet, TwiceNet, build, random_images

IMAGES = random_images(6)


class Wide(nn.Module):
    """More classes than the expectation is exact for."""

    def __init__(self, classes: int = 20) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu_(self.body(images)).mean((2, 3)))
        return logits


def trace_by_jacobian(model: SmallNet) -> float:
    """Of the output of conv2: the rest of the network as a function of it, differentiated by torch."""

    def rest(features: Tensor) -> Tensor:
        hidden = torch.relu(model.norm2(features)).flatten(1)
        return model.fc2(torch.relu(model.fc1(hidden))).log_softmax(1)  # type: ignore[no-any-return]

    total = 0.0
    for image in IMAGES:
        with torch.no_grad():
            output = model.conv2(torch.relu(model.norm1(model.conv1(image[None]))))
            weights = rest(output)[0].exp()
        jacobian = torch.func.jacrev(rest)(output)[0].detach().flatten(1)  # (classes, outputs)
        total += float((weights[:, None] * jacobian.square()).sum())
    return total / len(IMAGES)


@pytest.mark.parametrize("frozen", [False, True])
def test_traces_are_those_of_the_jacobian(frozen: bool) -> None:
    model = build(SmallNet)
    model.requires_grad_(not frozen)
    found = fisher_traces(model, ["conv1", "conv2", "fc2"], [IMAGES[:4], IMAGES[4:]])
    assert isinstance(model, SmallNet)
    assert found["conv2"] == pytest.approx(trace_by_jacobian(model), rel=1e-4)
    p = model(IMAGES).detach().double().softmax(1)
    assert found["fc2"] == pytest.approx(float((1 - p.square().sum(1)).mean()), rel=1e-5)
    assert found["conv1"] > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_calls_of_a_layer_add() -> None:
    model = build(TwiceNet)
    found = fisher_traces(model, ["stem", "shared"], [IMAGES])
    assert found["shared"] > 0


def test_drawn_classes_have_the_same_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Wide)
    monkeypatch.setattr(fisher, "EXACT_CLASSES", 20)
    exact = fisher_traces(model, ["body"], [IMAGES])["body"]
    monkeypatch.undo()
    drawn = [fisher_traces(model, ["body"], [IMAGES], seed=seed)["body"] for seed in range(40)]
    spread = float(torch.tensor(drawn).std()) / 40**0.5
    assert abs(sum(drawn) / 40 - exact) < 5 * spread
    assert fisher_traces(model, ["body"], [IMAGES], seed=3)["body"] == drawn[3]


def test_outputs_that_are_no_logits_are_refused() -> None:
    with pytest.raises(ModelError, match="logits"):
        fisher_traces(build(lambda: Wide(classes=1)), ["body"], [IMAGES])  # type: ignore[arg-type]
