"""A tiny CIFAR-10 in the layout of its binary edition, and a network small enough to prune in seconds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor, nn

from pipelines.cifar_networks import Network
from pipelines.cifar_paper import Cut, Printed

BATCH_IMAGES: Final = 80


def write_cifar(root: Path, *, seed: int = 0) -> Path:
    """Five training batches and one of test images; the class shows in a stripe and a colour, under noise."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        labels = np.arange(BATCH_IMAGES) % 10
        images = generator.integers(0, 90, (BATCH_IMAGES, 3, 32, 32))
        for image, label in zip(images, labels, strict=True):
            image[label % 3, 3 * label : 3 * label + 4] += 120
        records = np.concatenate([labels[:, None], images.reshape(BATCH_IMAGES, -1)], 1)
        records.astype(np.uint8).tofile(folder / f"{name}.bin")
    return root


class Tiny(nn.Module):
    """Three convolutions with batch normalisation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 10, 12)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(12 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


TINY: Final = Network(
    "tiny",
    "Tiny",
    Tiny,
    "tests.pipelines.small_pictures:Tiny",
    "classifier",
    (
        Cut("conv(1)", ("features.4",), 0.1, Printed(0.91, {1: 0.92, 20: 0.93}, 0.1, 0.2, 1.25, 0.5)),
        Cut("conv_all+fc", (), 0.5, Printed(0.81, {0: 0.82}, 0.5)),
    ),
    (0.6,),
    Printed(0.95, megabytes=1.5),
    {"fine-tuned": {0: 0.81, 1: 0.815}},
)
