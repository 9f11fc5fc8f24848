"""MNIST: 28×28 images of handwritten digits in ten classes.

The test set (10,000 images) and the first 20,000 of the 60,000 training images come with the package, so
everything runs offline. The complete training set is used where it is found:

1. in `data_root`, when a caller gives one;
2. in the directory named by the environment variable STREAMSPARSE_DATA, when it is set;
3. in `shared/data/mnist` beside the repository.

Such a directory holds the four IDX files under their original names, raw or `.gz`, itself or in `mnist/` or
`MNIST/raw/` (where torchvision puts them).
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipelines.idx import ReadableFile, read_idx
from streamsparse.errors import DataError

Split = Literal["train", "test"]
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

EMBEDDED_TRAINING_IMAGES: Final = 20_000
MEAN: Final = 0.1307  # of all training pixels scaled to [0, 1]
STANDARD_DEVIATION: Final = 0.3081
DATA_VARIABLE: Final = "STREAMSPARSE_DATA"
PREFIX: Final[dict[str, str]] = {"train": "train", "test": "t10k"}
BESIDE_REPOSITORY: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


class Mnist(Dataset[tuple[Tensor, int]]):
    """Normalised images with their labels; kept as bytes, a quarter of their size as float32.

    Args:
        images: uint8 (images, 28, 28).
        labels: int64 (images,), 0 to 9.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image, float32 (1, 28, 28), and its label."""
        return normalise(self.images[index][None])[0], int(self.labels[index])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images, float32 (images, 1, 28, 28), and labels, int64 (images,); new memory at every call."""
        return normalise(self.images), torch.tensor(self.labels)


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """(x / 255 − mean) / standard deviation: uint8 (images, 28, 28) to float32 (images, 1, 28, 28)."""
    scaled = torch.tensor(images, dtype=torch.float32).unsqueeze(1).div_(255)
    return scaled.sub_(MEAN).div_(STANDARD_DEVIATION)


def calibration() -> Mnist:
    """The 20,000 embedded training images: for `streamsparse capture --data pipelines.mnist:calibration`."""
    return Mnist(*load_embedded("train"))


def training() -> Mnist:
    """All 60,000 training images where they are found, else the 20,000 embedded ones."""
    return Mnist(*load_mnist("train"))


def test() -> Mnist:
    """The 10,000 test images: for `streamsparse evaluate --data pipelines.mnist:test`."""
    return Mnist(*load_embedded("test"))


def load_mnist(split: Split, *, data_root: Path | None = None) -> Arrays:
    """The most complete MNIST there is: see the top of this module for where it is looked for.

    Returns:
        Images, uint8 (images, 28, 28), and labels, int64 (images,). 10,000 for "test"; for "train" 60,000, or
        20,000 when only the embedded ones are there.

    Raises:
        DataError: `data_root` or STREAMSPARSE_DATA names a directory without MNIST, or a file is corrupt.
    """
    directory = find_mnist(data_root)
    if directory is None:
        return load_embedded(split)
    return _load(
        _existing(directory, f"{PREFIX[split]}-images-idx3-ubyte"),
        _existing(directory, f"{PREFIX[split]}-labels-idx1-ubyte"),
    )


def load_embedded(split: Split) -> Arrays:
    """The images that come with the package: 20,000 for "train", 10,000 for "test"; as `load_mnist`."""
    prefix = f"train-{EMBEDDED_TRAINING_IMAGES}" if split == "train" else PREFIX[split]
    data = files("pipelines") / "data"
    return _load(data / f"{prefix}-images-idx3-ubyte.xz", data / f"{prefix}-labels-idx1-ubyte.xz")


def find_mnist(data_root: Path | None = None) -> Path | None:
    """The directory of the complete MNIST, or None when none was named and none is beside the repository.

    Raises:
        DataError: `data_root` or STREAMSPARSE_DATA was given and holds no MNIST.
    """
    named = os.environ.get(DATA_VARIABLE)
    root = data_root or (Path(named) if named else None)
    if root is None:
        return _directory_with_files(BESIDE_REPOSITORY)
    directory = _directory_with_files(root)
    if directory is None:
        raise DataError(
            "there is no MNIST in the data directory",
            expected="train-images-idx3-ubyte and its siblings, raw or .gz, there or in mnist/ or MNIST/raw/",
            where=root if data_root else f"{root} (from the environment variable {DATA_VARIABLE})",
            remedy="name the directory of the IDX files, or none to use the embedded images",
        )
    return directory


def _directory_with_files(root: Path) -> Path | None:
    for directory in (root, root / "mnist", root / "MNIST" / "raw"):
        if any(directory.glob("train-images-idx3-ubyte*")):
            return directory
    return None


def _existing(directory: Path, name: str) -> Path:
    raw = directory / name
    return raw if raw.exists() else directory / f"{name}.gz"


def _load(image_file: ReadableFile, label_file: ReadableFile) -> Arrays:
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (28, 28) or len(images) == 0:
        raise DataError(
            "these are not MNIST images", expected="(images, 28, 28)", got=images.shape, where=image_file
        )
    if len(labels) != len(images) or labels.max() > 9:
        raise DataError(
            "the labels do not belong to the images",
            expected=f"{len(images)} labels from 0 to 9",
            got=f"{len(labels)} labels" + (f" up to {labels.max()}" if len(labels) else ""),
            where=label_file,
        )
    return images, labels.astype(np.int64)
