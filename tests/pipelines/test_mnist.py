"""The embedded MNIST is the real one, and a complete one is found where the module says it looks."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines.mnist as mnist
from pipelines.embed_mnist import embed
from pipelines.idx import format_idx
from streamsparse.errors import DataError

FILES = {
    "train-20000-images-idx3-ubyte.xz": "a11a4e2732abb0fa4e8f31a13a8d7556412b39452f305e80c7f4b77edc889936",
    "train-20000-labels-idx1-ubyte.xz": "eb92585ea9285fed1427500c49eefcc06f159cc858b6d825728649a46f3f0ff8",
    "t10k-images-idx3-ubyte.xz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.xz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
DIGITS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


@pytest.fixture(autouse=True)
def only_the_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies on the machine that runs the tests must not matter."""
    monkeypatch.delenv(mnist.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(mnist, "BESIDE_REPOSITORY", tmp_path / "nothing here")


def write_complete(directory: Path, *, compressed: bool = True) -> Path:
    """A small data set under the original names."""
    directory.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", DIGITS), ("labels-idx1", LABELS)):
            path = directory / f"{prefix}-{name}-ubyte"
            if compressed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(format_idx(array)))
            else:
                path.write_bytes(format_idx(array))
    return directory


@pytest.mark.parametrize("name", FILES)
def test_embedded_files_hold_what_the_readme_says(name: str) -> None:
    data = files("pipelines") / "data"
    compressed = (data / name).read_bytes()
    assert hashlib.sha256(lzma.decompress(compressed)).hexdigest() == FILES[name]
    readme = (data / "README.md").read_text()
    assert FILES[name] in readme
    assert hashlib.sha256(compressed).hexdigest() in readme
    assert f"{len(compressed):,}" in readme


def test_the_test_set_is_complete() -> None:
    images, labels = mnist.load_mnist("test")
    assert images.shape == (10_000, 28, 28)
    assert images.dtype == np.uint8
    assert labels.shape == (10_000,)
    assert labels.dtype == np.int64
    # The published class counts of the test set.
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_without_a_complete_set_training_is_the_embedded_images() -> None:
    images, labels = mnist.load_mnist("train")
    assert len(images) == len(labels) == mnist.EMBEDDED_TRAINING_IMAGES
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as published
    assert images.mean() / 255 == pytest.approx(mnist.MEAN, abs=1e-3)


def test_calibration_and_test_ignore_a_complete_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mnist.DATA_VARIABLE, str(write_complete(tmp_path)))
    assert len(mnist.calibration()) == 20_000
    assert len(mnist.test()) == 10_000
    assert len(mnist.training()) == 12


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False], ids=["gz", "raw"])
def test_data_root(tmp_path: Path, place: str, compressed: bool) -> None:
    write_complete(tmp_path / place, compressed=compressed)
    for split in ("train", "test"):
        images, labels = mnist.load_mnist(split, data_root=tmp_path)
        np.testing.assert_array_equal(images, DIGITS)
        np.testing.assert_array_equal(labels, LABELS)


def test_beside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "BESIDE_REPOSITORY", write_complete(tmp_path / "shared"))
    np.testing.assert_array_equal(mnist.load_mnist("train")[0], DIGITS)


def test_a_named_directory_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mnist.DATA_VARIABLE, str(tmp_path / "elsewhere"))
    np.testing.assert_array_equal(mnist.load_mnist("train", data_root=write_complete(tmp_path / "here"))[0], DIGITS)


def test_a_directory_without_mnist_is_refused_and_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no MNIST"):
        mnist.load_mnist("train", data_root=tmp_path)
    monkeypatch.setenv(mnist.DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="no MNIST") as caught:
        mnist.load_mnist("train")
    assert mnist.DATA_VARIABLE in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte", DIGITS[:, :27], "not MNIST images"),
        ("train-images-idx3-ubyte", DIGITS[:0], "not MNIST images"),
        ("train-labels-idx1-ubyte", LABELS[:-1], "labels do not belong"),
        ("train-labels-idx1-ubyte", LABELS + 1, "labels do not belong"),
        ("train-labels-idx1-ubyte", LABELS[:0], "labels do not belong"),
    ],
    ids=["27 rows", "no images", "a label missing", "a tenth class", "no labels"],
)
def test_files_that_do_not_fit_together(
    tmp_path: Path, name: str, array: np.typing.NDArray[np.uint8], message: str
) -> None:
    write_complete(tmp_path, compressed=False)
    (tmp_path / name).write_bytes(format_idx(array))
    with pytest.raises(DataError, match=message):
        mnist.load_mnist("train", data_root=tmp_path)


def test_a_missing_sibling_is_named(tmp_path: Path) -> None:
    write_complete(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="cannot be read") as caught:
        mnist.load_mnist("train", data_root=tmp_path)
    assert "train-labels" in str(caught.value)


def test_normalisation_and_the_two_ways_to_read() -> None:
    dataset = mnist.Mnist(DIGITS, LABELS.astype(np.int64))
    images, labels = dataset.tensors()
    assert (images.shape, images.dtype, labels.dtype) == ((12, 1, 28, 28), torch.float32, torch.int64)
    expected = (DIGITS.astype(np.float64) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(images[:, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    for index in range(len(dataset)):
        image, label = dataset[index]
        assert torch.equal(image, images[index])
        assert label == int(labels[index])


def test_embedding_keeps_the_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.embed_mnist.EMBEDDED_TRAINING_IMAGES", 5)
    paths = embed(write_complete(tmp_path / "source"), tmp_path)
    contents = [lzma.decompress(path.read_bytes()) for path in paths]
    assert contents == [format_idx(array) for array in (DIGITS[:5], LABELS[:5], DIGITS, LABELS)]
    assert [path.name for path in paths[2:]] == list(FILES)[2:]
