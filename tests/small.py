"""Small networks, layers and captured runs for the tests of the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.accumulate.reading import Piece, pieces
from streamsparse.capture import CaptureSettings, capture
from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.statistics import empty, update
from streamsparse.store import Run
from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch
from streamsparse.store.statistics import Statistics
from streamsparse.types import LayerGeometry


class SmallNet(nn.Module):
    """Two convolutions with batch normalisation and in-place ReLUs, flatten, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 9, 12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu_(self.norm1(self.conv1(images)))
        features = torch.relu_(self.norm2(self.conv2(features)))
        logits: Tensor = self.fc2(torch.relu_(self.fc1(features.flatten(1))))
        return logits


class TwiceNet(nn.Module):
    """Calls one layer twice; its input and output are the same tensor's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.stem(images))
        features = F.relu(self.shared(F.relu(self.shared(features))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class ConcatNet(nn.Module):
    """A layer that reads two groups of channels side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 3, 3, padding=1)
        self.right = nn.Conv2d(1, 4, 3, padding=1)
        self.mix = nn.Conv2d(7, 5, 3, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.cat([F.relu(self.left(images)), F.relu(self.right(images))], 1)
        logits: Tensor = self.head(F.relu(self.mix(features)).mean((2, 3)))
        return logits


def build(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network with random weights and normalisations that do something, in evaluation mode."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def random_images(count: int = 40, seed: int = 1, size: int = 8) -> Tensor:
    """(count, 1, size, size), of unequal brightness."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, size, size, generator=generator)
    return images + torch.randn(count, 1, 1, 1, generator=generator)


def captured_run(path: Path, kind: type[nn.Module] = SmallNet, *, images: int = 40, batch: int = 10) -> Run:
    """A run with a finished capture in float32."""
    run = Run.at(path)
    capture(build(kind), random_images(images), run, settings=CaptureSettings("float32", batch_images=batch))
    return run


def summed_run(path: Path, kind: type[nn.Module] = SmallNet, *, images: int = 40, batch: int = 10) -> Run:
    """A run with finished statistics in four folds."""
    run = captured_run(path, kind, images=images, batch=batch)
    accumulate(run, settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial")
    return run


def statistics_arrays(run: Run, stream: str = "original") -> dict[str, np.ndarray]:
    """Every array of a run's statistics, under "layer fold field"."""
    found = Statistics(run, stream)
    return {key: value for layer in found for key, value in sums_arrays(found[layer], layer).items()}


def sums_arrays(sums: FoldSums, layer: str = "") -> dict[str, np.ndarray]:
    """Every array of some sums by fold, under "layer fold field"."""
    return {
        f"{layer} {fold} {name}": tensor.numpy()
        for fold, part in enumerate(sums)
        for name, tensor in part.tensors().items()
    }


def largest_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Over all arrays, the largest difference relative to the array's largest magnitude."""
    assert found.keys() == expected.keys()
    return max(
        float(np.abs(found[key] - expected[key]).max() / max(np.abs(expected[key]).max(), 1e-300))
        for key in expected
    )


def files_below(path: Path) -> dict[str, bytes]:
    """Contents of every file below a directory, lock files left out."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.endswith(".lock")
    }


def geometry_of(layer: nn.Module, example: Tensor) -> LayerGeometry:
    """The geometry of a single layer, from its attributes and one forward pass."""
    with torch.no_grad():
        output = layer(example)
    if isinstance(layer, nn.Linear):
        return LayerGeometry(
            "layer", "linear", layer.in_features, layer.out_features, (), (), (), (), 1, "zeros",
            layer.bias is not None, tuple(example.shape[1:]), tuple(output.shape[1:]),
        )  # fmt: skip
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return LayerGeometry(
        layer="layer",
        kind="conv1d" if isinstance(layer, nn.Conv1d) else "conv2d",
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel=tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        padding=tuple((int(size), int(size)) for size in layer.padding),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        bias=layer.bias is not None,
        input_shape=tuple(example.shape[1:]),
        output_shape=tuple(output.shape[1:]),
    )


@st.composite
def layers_with_inputs(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A float64 convolution or linear layer of random geometry, and images for it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    images = draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["conv2d", "conv2d", "conv1d", "linear", "tokens"]))
    bias = draw(st.booleans())
    if kind in ("linear", "tokens"):
        features, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 5))
        tokens = (draw(st.integers(1, 4)),) if kind == "tokens" else ()
        linear = nn.Linear(features, outputs, bias=bias).double()
        return linear, torch.randn((images, *tokens, features), dtype=torch.float64)
    dimensions = 2 if kind == "conv2d" else 1

    def each(strategy: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(strategy) for _ in range(dimensions))

    kernel, stride, dilation = each(st.integers(1, 3)), each(st.integers(1, 3)), each(st.integers(1, 2))
    padding, groups = each(st.integers(0, 2)), draw(st.integers(1, 3))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(draw(st.integers(max(3, r), r + 5)) for r in reach)
    module = nn.Conv2d if dimensions == 2 else nn.Conv1d
    layer = module(
        groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), kernel,  # type: ignore[arg-type]
        stride, padding, dilation, groups, bias,  # type: ignore[arg-type]
        draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )  # fmt: skip
    return layer.double(), torch.randn(images, layer.in_channels, *size, dtype=torch.float64)


def flip_bit(file: Path) -> None:
    """In the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flipped": flip_bit,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "emptied": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
}


def reference_folds(geometry: LayerGeometry, inputs: Tensor, outputs: Tensor, folds: int) -> FoldSums:
    """Sums by fold from float64 patches: the reference that the kernels without patches must meet."""
    sums = tuple(empty(geometry) for _ in range(folds))
    for fold, part in enumerate(sums):
        update(part, inputs[fold::folds], outputs[fold::folds], geometry)
    return sums


def batch_by_batch(
    reader: ActivationReader, layer: str, calls: int, batches: Sequence[Batch], step: int, **options: Any
) -> Iterator[Piece]:
    """In place of `reading.pieces`, whose pieces hold all batches of networks as small as these."""
    return pieces(reader, layer, calls, batches, min(step, max(batch.images for batch in batches)), **options)
