"""Trained networks with their calibration and test images: what the studies are made on.

The LeNet and its MNIST images come with the package. VGG-16 and ResNet-18, trained on Fashion-MNIST at 32 pixels,
and their data are looked for in `shared/` beside the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pipelines.mnist as mnist
from pipelines.idx import read_idx
from pipelines.lenet import LeNet
from streamsparse.errors import DataError, UsageError

SHARED: Final = Path(__file__).resolve().parents[2] / "shared"
LENET_WEIGHTS: Final = Path(__file__).parent / "data" / "lenet_mnist.safetensors"
FASHION_MEAN, FASHION_DEVIATION = 0.2860, 0.3530


class Vgg16(nn.Module):
    """VGG-16 with batch normalisation for 32 pixels: 13 convolutions and one linear layer, as in the paper."""

    def __init__(self) -> None:
        import torchvision

        super().__init__()
        self.features = torchvision.models.vgg16_bn(weights=None, init_weights=False).features
        self.classifier = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Float (images, 3, 32, 32) to logits (images, 10)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385, figure 2 with option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)] if changes else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(inner + self.shortcut(images))


class Resnet18(nn.Module):
    """ResNet-18 for 32 pixels: a 3×3 stem without pooling, four stages of two blocks, 4×4 average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.linear = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Float (images, 3, 32, 32) to logits (images, 10)."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.linear(F.avg_pool2d(features, 4).flatten(1))
        return logits


@dataclass(frozen=True)
class Subjects:
    """A trained network with its calibration and test images."""

    name: str
    model: nn.Module
    calibration: TensorDataset
    test: TensorDataset


def lenet() -> Subjects:
    """The LeNet and the MNIST images that come with the package."""
    model = LeNet()
    model.load_state_dict(load_file(LENET_WEIGHTS))
    parts = (TensorDataset(*dataset.tensors()) for dataset in (mnist.calibration(), mnist.test()))
    return Subjects("LeNet on MNIST", model.eval(), *parts)


def vgg16() -> Subjects:
    """The trained VGG-16 and Fashion-MNIST.

    Raises:
        DataError: they are not there.
    """
    return _on_fashion("VGG-16", Vgg16, "vgg16")


def resnet18() -> Subjects:
    """The trained ResNet-18 and Fashion-MNIST.

    Raises:
        DataError: they are not there.
    """
    return _on_fashion("ResNet-18", Resnet18, "resnet18")


NETWORKS: Final[dict[str, Callable[[], Subjects]]] = {"lenet": lenet, "vgg16": vgg16, "resnet18": resnet18}


def subjects_of(network: str) -> Subjects:
    """By name in `NETWORKS`.

    Raises:
        UsageError: there is no such network.
        DataError: its weights or images are not there.
    """
    if network not in NETWORKS:
        raise UsageError("There is no such network.", expected=", ".join(NETWORKS), got=network, where="--network")
    return NETWORKS[network]()


def checked_sparsities(sparsities: Sequence[float]) -> tuple[float, ...]:
    """Rising, each once.

    Raises:
        UsageError: none, or one that is no fraction.
    """
    if not sparsities or not all(0 < value < 1 for value in sparsities):
        raise UsageError("A sparsity is a fraction.", expected="0 < X < 1", got=sparsities, where="--sparsity")
    return tuple(sorted(set(sparsities)))


def weights_file(network: str) -> Path:
    """Where the weights of a network on Fashion-MNIST are looked for."""
    return SHARED / "models" / f"{network}_fashion_mnist.safetensors"


def _on_fashion(name: str, kind: type[nn.Module], network: str) -> Subjects:
    path, folder = weights_file(network), SHARED / "data" / "fashion-mnist"
    if not path.exists() or not folder.is_dir():
        raise DataError(
            f"The trained {name} or its data are not there.", expected=f"{path.name} and Fashion-MNIST",
            got="nothing", where=path.parent, remedy="put them there, or use the network that comes along: lenet",
        )  # fmt: skip
    model = kind()
    found = model.load_state_dict({key: tensor.float() for key, tensor in load_file(path).items()}, strict=False)
    missing = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise DataError(
            f"The weights are not those of {name}.", expected="a tensor for every parameter and running statistic",
            got=f"missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}", where=path,
        )  # fmt: skip
    parts = (_fashion(folder, prefix) for prefix in ("train", "t10k"))
    return Subjects(f"{name} on Fashion-MNIST", model.eval(), *parts)


def _fashion(folder: Path, prefix: str) -> TensorDataset:
    images = torch.from_numpy(read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 3).copy())
    labels = torch.from_numpy(read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 1).astype(np.int64))
    return FashionImages(images, labels)


class FashionImages(TensorDataset):
    """Kept as bytes; normalised, padded to 32 pixels and repeated to three channels when asked for."""

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        pixels = F.pad(self.tensors[0][index], (2, 2, 2, 2))
        scaled = (pixels.float() / 255 - FASHION_MEAN) / FASHION_DEVIATION
        return scaled.unsqueeze(-3).expand(*scaled.shape[:-2], 3, 32, 32).contiguous(), self.tensors[1][index]


def accuracy(model: nn.Module, test: TensorDataset, images: int) -> float:
    """Of the first so many test images."""
    correct = 0
    with torch.inference_mode():
        for first in range(0, images, 250):
            batch, labels = test[slice(first, min(images, first + 250))]
            correct += int((model(batch).argmax(1) == labels).sum())
    return correct / images
