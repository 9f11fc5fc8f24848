"""Second-order divergences against Jacobians, class by class, and against the divergence itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.kernels.divergence import output_loss
from streamsparse.network import fisher
from streamsparse.network.fisher import LayerTensors, quadratic_losses
from tests.small import ConcatNet, SmallNet, TwiceNet, build, random_images

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


def nudged(model: nn.Module, layers: list[str], size: float) -> LayerTensors:
    """Weights and biases of some layers, changed by a fraction of themselves."""
    torch.manual_seed(3)
    change = {}
    for layer in layers:
        parameters = dict(model.get_submodule(layer).named_parameters(recurse=False))
        change[layer] = {n: (p * (1 + size * torch.randn_like(p))).detach() for n, p in parameters.items()}
    return change


def real_divergence(model: nn.Module, change: LayerTensors) -> float:
    changed = {f"{layer}.{name}": value for layer, own in change.items() for name, value in own.items()}
    with torch.no_grad():
        return output_loss([model(IMAGES)], [torch.func.functional_call(model, changed, (IMAGES,))])


def by_jacobian(model: nn.Module, layer: str, change: LayerTensors) -> float:
    """½ Σ_c p_c (J_c d)² from the Jacobian of the rest of the network, for conv2 of SmallNet."""
    assert isinstance(model, SmallNet)

    def rest(features: Tensor) -> Tensor:
        hidden = torch.relu(model.norm2(features)).flatten(1)
        log_p: Tensor = model.fc2(torch.relu(model.fc1(hidden))).log_softmax(1)
        return log_p

    total = 0.0
    for image in IMAGES:
        with torch.no_grad():
            inputs = torch.relu(model.norm1(model.conv1(image[None])))
            output = model.conv2(inputs)
            difference = torch.func.functional_call(model.conv2, dict(change[layer]), (inputs,)) - output
            p = rest(output)[0].exp()
        jacobian = torch.func.jacrev(rest)(output)[0].detach().flatten(1)  # (classes, outputs)
        total += float((p * (jacobian @ difference.flatten()).square()).sum()) / 2
    return total / len(IMAGES)


@pytest.mark.parametrize("frozen", [False, True])
def test_losses_are_those_of_the_jacobian(frozen: bool) -> None:
    model = build(SmallNet)
    model.requires_grad_(not frozen)
    changes = [nudged(model, ["conv2"], size) for size in (0.3, 0.01)]
    found = quadratic_losses(model, changes, [IMAGES[:4], IMAGES[4:]])
    assert found == pytest.approx([by_jacobian(model, "conv2", change) for change in changes], rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (SmallNet, ["conv1", "fc1"]),
        (SmallNet, ["fc2"]),
        (TwiceNet, ["shared"]),
        (ConcatNet, ["mix", "head"]),
    ],
)
def test_small_changes_have_the_divergence_itself(kind: type[nn.Module], layers: list[str]) -> None:
    """Also of several layers at once, and of one that is called twice."""
    model = build(kind).double()
    global_images, change = IMAGES.double(), nudged(model, layers, 1e-3)
    changed = {f"{layer}.{name}": value for layer, own in change.items() for name, value in own.items()}
    with torch.no_grad():
        expected = output_loss(
            [model(global_images)], [torch.func.functional_call(model, changed, (global_images,))]
        )
    assert quadratic_losses(model, [change], [global_images]) == pytest.approx([expected], rel=0.02)


def test_drawn_signs_have_the_same_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Wide)
    change = nudged(model, ["body"], 0.1)

    def losses(seed: int) -> float:
        return quadratic_losses(model, [change], [IMAGES], seed=seed)[0]

    drawn = [losses(seed) for seed in range(40)]
    monkeypatch.setattr(fisher, "EXACT_CLASSES", 20)
    exact = losses(0)
    monkeypatch.undo()
    spread = float(torch.tensor(drawn).std()) / 40**0.5
    assert abs(sum(drawn) / 40 - exact) < 5 * spread
    assert losses(3) == drawn[3]
    assert exact == pytest.approx(real_divergence(model, change), rel=0.3)


def test_outputs_that_are_no_logits_are_refused() -> None:
    model = Wide(classes=1)
    with pytest.raises(ModelError, match="logits"):
        quadratic_losses(model, [nudged(model, ["body"], 0.1)], [IMAGES])
