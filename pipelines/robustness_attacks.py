"""FGSM and PGD: the images near given ones that a network gets wrong.

Sources: I. Goodfellow, J. Shlens, C. Szegedy, "Explaining and harnessing adversarial examples", arXiv:1412.6572
(FGSM); A. Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv:1706.06083 (PGD).
Both are untargeted here, on cross entropy, and stay within ε of every pixel value (the maximum norm) and within
[0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamsparse.errors import UsageError


@dataclass(frozen=True)
class Attack:
    """What the attacker may do.

    Attributes:
        epsilon: largest change of a pixel value, in units of 1/255.
        steps: gradients that are looked at. 1 with a step of ε and no random start is FGSM.
        step: change of a pixel value in one step, in units of 1/255.
        random_start: begin anywhere within ε instead of at the image.
        seed: of the start.
    """

    epsilon: float
    steps: int
    step: float
    random_start: bool
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and self.steps >= 1 and self.step >= 0):
            raise UsageError(
                "This attack cannot be.", expected="no negative ε or step, at least one step", got=self
            )


def fgsm(epsilon: float) -> Attack:
    """One step to the border, along the gradient's sign."""
    return Attack(epsilon, 1, epsilon, random_start=False)


def pgd(epsilon: float, steps: int, step: float | None = None, seed: int = 0) -> Attack:
    """Steps along the gradient's sign from a random start, each brought back within ε.

    Args:
        step: None for 2.5 ε over the number of steps, as Madry et al. take it.
    """
    return Attack(epsilon, steps, 2.5 * epsilon / steps if step is None else step, random_start=True, seed=seed)


class OnPixels(nn.Module):
    """A network that takes pixel values in [0, 1]: the normalisation, and grey images for three channels, inside.

    So an attack on a grey image gives a grey image.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], deviation: Sequence[float], channels: int) -> None:
        super().__init__()
        self.model = model
        self.channels = channels
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Float (images, 1 or `channels`, height, width) in [0, 1] to logits (images, classes)."""
        images = ((pixels - self.mean) / self.deviation).expand(-1, self.channels, -1, -1)
        logits: Tensor = self.model(images)
        return logits

    def pixels_of(self, images: Tensor) -> Tensor:
        """The pixel values of normalised images; one channel where all are the same."""
        pixels = (images * self.deviation + self.mean).clamp(0, 1)
        grey = len(self.mean) == 1 and bool((pixels == pixels[:, :1]).all())
        return pixels[:, :1] if grey else pixels


def attacked(model: nn.Module, pixels: Tensor, labels: Tensor, attack: Attack) -> Tensor:
    """The attack's images, of the same shape.

    Args:
        model: in evaluation mode; pixel values (images, channels, height, width) in [0, 1] to logits.
        pixels: to start from; labels: (images,), the right ones.
    """
    epsilon, step = attack.epsilon / 255, attack.step / 255
    low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
    found = pixels.clone()
    if attack.random_start:
        generator = torch.Generator().manual_seed(attack.seed)
        noise = torch.rand(pixels.shape, generator=generator).to(pixels.device)
        found = found + epsilon * (2 * noise - 1)
        found = torch.minimum(torch.maximum(found, low), high)
    for _ in range(attack.steps):
        found = found + step * _gradient(model, found, labels).sign()
        found = torch.minimum(torch.maximum(found, low), high)
    return found


def _gradient(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross entropy by the pixels; parameters' gradients are left alone."""
    with torch.enable_grad():
        images = pixels.detach().requires_grad_()
        loss = functional.cross_entropy(model(images), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]
