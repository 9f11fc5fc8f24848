"""Pictures are what streamsparse's own preprocessing makes of the same files; what cannot be used is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.cifar_data import NORMALISATION, is_there, open_pictures
from pipelines.idx import format_idx
from streamsparse.errors import DataError
from streamsparse.intake.data import open_data
from streamsparse.intake.preprocessing import Preprocessing
from tests.pipelines.small_pictures import write_cifar


def write_fashion(root: Path) -> Path:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(2)
    for start, count in (("train", 12), ("t10k", 5)):
        images = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{start}-images-idx3-ubyte.gz").write_bytes(gzip.compress(format_idx(images)))
        (folder / f"{start}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(format_idx(labels)))
    return root


@pytest.mark.parametrize(
    ("spec", "write", "pad"), [("cifar10", write_cifar, 0), ("fashion-mnist", write_fashion, 2)]
)
def test_pictures_are_what_the_intake_makes(spec: str, write: object, pad: int, tmp_path: Path) -> None:
    assert callable(write)
    assert not is_there(spec, tmp_path)
    write(tmp_path)
    assert is_there(spec, tmp_path)
    found = open_pictures(spec, tmp_path)
    mean, deviation = NORMALISATION[spec]
    for split, (images, labels) in (("train", found.training), ("test", found.test)):
        preprocessing = Preprocessing(pad=pad, channels=3, mean=mean, std=deviation)
        wanted = open_data(spec, data_root=tmp_path, split=split, preprocessing=preprocessing)
        assert len(wanted) == len(labels)  # type: ignore[arg-type]
        for index in (0, 3, len(labels) - 1):
            image, label = wanted[index]
            assert isinstance(image, Tensor)
            assert torch.allclose(images[index], image, atol=1e-6)
            assert labels[index] == label
    assert found.classes == 10
    assert found.training[0].shape[1:] == (3, 32, 32)
    assert len(found.calibration) == len(found.training[1])


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    one, other = (open_pictures("cifar10", write_cifar(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    again = open_pictures("cifar10", tmp_path / "0")
    assert one.digest == again.digest != other.digest


def test_arrays_of_any_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (9, 20, 24), dtype=np.uint8), np.arange(9) % 3
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    found = open_pictures(f"npz:{tmp_path / 'some.npz'}")
    assert found.training[0].shape == (9, 3, 32, 32)
    assert found.classes == 3
    assert -2 <= float(found.training[0].min()) < float(found.training[0].max()) <= 2


def test_pictures_without_labels_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", images=np.zeros((9, 20, 24), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        open_pictures(f"npz:{tmp_path / 'some.npz'}")
