"""Small pictures for networks that take 3×32×32: CIFAR-10, Fashion-MNIST, MNIST, or any other data set.

    cifar10, fashion-mnist, mnist    files as torchvision lays them out; downloaded where they are missing
    imagefolder:PATH, npz:PATH ...   whatever `streamsparse.intake.data` opens; resized to 32×32, scaled to [-2, 2]

All images are held in memory as float32; grey ones once for the three channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from pipelines.networks import SHARED
from pipelines.training import Labelled
from streamsparse.errors import DataError, StorageError
from streamsparse.intake.classic import CLASSIC, classic_arrays
from streamsparse.intake.data import open_data
from streamsparse.intake.preprocessing import Preprocessing

SIDE: Final = 32
NORMALISATION: Final = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "mnist": ((0.1307,), (0.3081,)),
}
"""Mean and standard deviation of the training pixels in [0, 1], by channel, before padding to 32 pixels."""
ELSEWHERE: Final = Preprocessing(resize=(SIDE, SIDE), channels=3, mean=(0.5,), std=(0.25,))
TITLES: Final = {"cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}


@dataclass(frozen=True, eq=False)
class Pictures:
    """A data set, ready for the networks.

    Attributes:
        spec: as given; title: for people.
        training, test: images, float32 (images, 3, 32, 32), and labels.
        classes: how many there are.
        digest: SHA-256 of everything.
        data_root: as given.
    """

    spec: str
    title: str
    training: Labelled
    test: Labelled
    classes: int
    digest: str
    data_root: Path | None = None

    @property
    def calibration(self) -> TensorDataset:
        """Training images, whose labels nothing reads."""
        return TensorDataset(*self.training)

    @property
    def examined(self) -> TensorDataset:
        """Test images."""
        return TensorDataset(*self.test)


def open_pictures(spec: str, data_root: Path | None = None) -> Pictures:
    """Read both splits.

    Args:
        spec: as above.
        data_root: where the named data sets lie, or are downloaded to; None: `data`, or `shared/data` beside the
            repository if they lie there.

    Raises:
        DataError: nothing there, damaged files, no labels, or labels that do not count from 0.
        StorageError: it is not there and cannot be downloaded.
    """
    root = root_of(spec, data_root)
    read = _classic if spec in CLASSIC else _any
    (images, labels), (test_images, test_labels) = (read(spec, root, split) for split in ("train", "test"))
    classes = int(labels.max()) + 1
    if min(int(labels.min()), int(test_labels.min())) < 0 or int(test_labels.max()) >= classes:
        raise DataError(
            "The labels of the test images are not those of the training images.",
            expected=f"0 to {classes - 1}", got=f"{int(test_labels.min())} to {int(test_labels.max())}", where=spec,
        )  # fmt: skip
    digest = hashlib.sha256()
    for tensor in (images, labels, test_images, test_labels):
        digest.update(repr(tuple(tensor.shape)).encode() + _stored(tensor).numpy().tobytes())
    return Pictures(
        spec,
        TITLES.get(spec, spec),
        (images, labels),
        (test_images, test_labels),
        classes,
        digest.hexdigest(),
        data_root,
    )


def dataset(spec: str, split: str = "train", data_root: str | None = None) -> TensorDataset:
    """One split, for commands that open the data of a run again, as `dataset_spec` names it."""
    found = open_pictures(spec, None if data_root is None else Path(data_root))
    return found.calibration if split == "train" else found.examined


def dataset_spec(spec: str, data_root: Path | None) -> str:
    """What names `dataset` in a run's manifest."""
    return f"pipelines.cifar_data:dataset?spec={spec}" + ("" if data_root is None else f"&data_root={data_root}")


def root_of(spec: str, data_root: Path | None) -> Path:
    """Where a named data set is looked for."""
    if data_root is not None:
        return data_root
    candidates = [Path("data"), SHARED / "data"]
    return next((root for root in candidates if _lies_in(spec, root)), candidates[0])


def is_there(spec: str, data_root: Path | None) -> bool:
    """Whether a named data set need not be downloaded; True for the others."""
    return spec not in CLASSIC or _lies_in(spec, root_of(spec, data_root))


def _lies_in(spec: str, root: Path) -> bool:
    folders = [root / folder for folder in CLASSIC.get(spec, ())]
    starts = ("train-images", "data_batch_1")
    return any(path.name.startswith(starts) for folder in folders if folder.is_dir() for path in folder.iterdir())


def _classic(spec: str, root: Path, split: str) -> Labelled:
    """As `Preprocessing(pad=..., channels=3, mean=..., std=...)` makes them, all at once."""
    try:
        pixels, labels = classic_arrays(spec, root, split, download=True)
    except StorageError as error:
        raise StorageError(
            error.summary, expected=error.expected, got=error.got, where=root,
            remedy=f"Put its files into {root / CLASSIC[spec][0]} or give their place with --data-root; or take "
            "another data set, such as --dataset fashion-mnist.",
        ) from error  # fmt: skip
    images = torch.from_numpy(np.array(pixels))  # a copy: the array may be read-only
    images = images[:, None] if images.dim() == 3 else images  # (images, 1 or 3, height, width)
    border = (SIDE - images.shape[3]) // 2
    scaled = functional.pad(images.float() / 255, (border,) * 4)
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in NORMALISATION[spec])
    return ((scaled - mean) / deviation).expand(-1, 3, -1, -1), torch.from_numpy(labels)


def _any(spec: str, root: Path, split: str) -> Labelled:
    dataset = open_data(spec, data_root=root, split=split, preprocessing=ELSEWHERE)
    return labelled(dataset, spec)


def labelled(dataset: Dataset[Any], where: str) -> Labelled:
    """All items in memory.

    Raises:
        DataError: items without a label.
    """
    images: Tensor | None = None
    count = len(dataset)  # type: ignore[arg-type]
    labels = torch.zeros(count, dtype=torch.int64)
    for index in range(count):
        item = dataset[index]
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise DataError(
                "These images have no labels.", expected="(image, label)", got="an image alone", where=where,
                remedy="give a data set with labels: one subdirectory per class, or an array `labels`",
            )  # fmt: skip
        images = torch.empty(count, *item[0].shape) if images is None else images
        images[index], labels[index] = item[0], int(item[1])
    return cast(Tensor, images), labels


def _stored(tensor: Tensor) -> Tensor:
    """Each number once: the channels of grey images are one."""
    return tensor[:, :1].contiguous() if tensor.dim() == 4 and tensor.stride(1) == 0 else tensor.contiguous()
