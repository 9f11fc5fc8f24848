"""Opening data sets by name, on small data made here."""

from __future__ import annotations

import gzip
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch.utils.data import DataLoader

from streamsparse.errors import DataError
from streamsparse.intake.data import open_data
from streamsparse.intake.preprocessing import Preprocessing

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, 7, dtype=np.uint8)


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    return header + values.tobytes()


def write_mnist(folder: Path, compress: bool, images: bytes = idx(IMAGES), labels: bytes = idx(LABELS)) -> None:
    folder.mkdir(parents=True)
    for name, content in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        file = folder / (name + (".gz" if compress else ""))
        file.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("spec", "folder"),
    [("mnist", "MNIST/raw"), ("mnist", "mnist"), ("fashion-mnist", "FashionMNIST/raw"), ("mnist", ".")],
)
def test_mnist_layouts(spec: str, folder: str, compress: bool, tmp_path: Path) -> None:
    write_mnist(tmp_path / "root" / folder, compress)
    dataset = open_data(spec, data_root=tmp_path / "root")
    assert len(dataset) == 7  # type: ignore[arg-type]
    image, label = dataset[3]
    assert (image.dtype, image.shape, label) == (torch.float32, (1, 28, 28), int(LABELS[3]))
    assert torch.equal(image, torch.from_numpy(IMAGES[3:4]) / 255)
    with pytest.raises(DataError, match="not there"):
        open_data(spec, data_root=tmp_path / "root", split="test")


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (idx(IMAGES)[:-1], idx(LABELS), "truncated"),
        (idx(IMAGES)[:7], idx(LABELS), "not IDX"),
        (b"\0\0\x0d\3" + idx(IMAGES)[4:], idx(LABELS), "not IDX"),
        (idx(IMAGES), idx(LABELS[:6]), "labels do not fit"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "empty"),
    ],
)
def test_damaged_mnist(images: bytes, labels: bytes, words: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", True, images, labels)
    with pytest.raises(DataError, match=words):
        open_data("mnist", data_root=tmp_path)
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="corrupt"):
        open_data("mnist", data_root=tmp_path)


def cifar(count: int) -> tuple[np.ndarray, list[int]]:
    return RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8), RANDOM.integers(0, 10, count).tolist()


def python_2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes of the published files: protocol 2, texts and array contents as Python 2 strings."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"K" + bytes((len(data),)) + b"M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = b"T" + data.nbytes.to_bytes(4, "little") + data.tobytes()
    numbers = b"](" + b"".join(b"K" + bytes((label,)) for label in labels) + b"e"
    state = b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"
    return b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + numbers + b"u."


def python_3_pickle(data: np.ndarray, labels: list[int], protocol: int = 2) -> bytes:
    return pickle.dumps({"data": data, "labels": labels, "batch_label": "test"}, protocol)


@pytest.mark.parametrize("pickled", [python_2_pickle, python_3_pickle, partial(python_3_pickle, protocol=4)])
def test_cifar_python_edition(pickled: Callable[[np.ndarray, list[int]], bytes], tmp_path: Path) -> None:
    data, labels = cifar(4)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickled(data, labels))
    image, label = open_data("cifar10", data_root=tmp_path, split="test")[2]
    assert torch.equal(image, torch.from_numpy(data[2].reshape(3, 32, 32)) / 255)
    assert label == labels[2]


def test_cifar_binary_edition(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    batches = [cifar(2) for _ in range(5)]
    for number, (data, labels) in enumerate(batches, 1):
        records = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
        (folder / f"data_batch_{number}.bin").write_bytes(records.tobytes())
    dataset = open_data("cifar10", data_root=tmp_path)
    assert len(dataset) == 10  # type: ignore[arg-type]
    image, label = dataset[9]
    assert torch.equal(image, torch.from_numpy(batches[4][0][1].reshape(3, 32, 32)) / 255)
    assert label == batches[4][1][1]
    (folder / "data_batch_3.bin").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="truncated"):
        open_data("cifar10", data_root=tmp_path)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_code_in_a_cifar_batch_never_runs(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Payload(tmp_path / "executed")}))
    with pytest.raises(DataError, match="corrupt"):
        open_data("cifar10", data_root=tmp_path, split="test")
    assert not (tmp_path / "executed").exists()


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (9, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)


def test_image_folder_with_classes_and_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "cat" / "1.png")
        picture(tmp_path / split / "ape" / "1.jpg")
        picture(tmp_path / split / "ape" / "deeper" / "2.PNG", "RGBA")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    for split in ("train", "test"):
        dataset = open_data(f"imagefolder:{tmp_path}", split=split)
        assert [label for _, label in (dataset[i] for i in range(3))] == [0, 0, 1]
        assert dataset[1][0].shape == (3, 6, 9)


def test_image_folder_without_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "L")
    image = open_data(f"imagefolder:{tmp_path}", preprocessing=Preprocessing(channels=3))[0]
    assert isinstance(image, torch.Tensor)
    assert image.shape == (3, 6, 9)


def test_broken_images_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    dataset = open_data(f"imagefolder:{tmp_path}")
    with pytest.raises(DataError, match=r"b\.png"):
        dataset[1]


ARRAYS: list[tuple[np.ndarray, tuple[int, ...]]] = [
    (IMAGES, (1, 28, 28)),
    (RANDOM.random((4, 3, 5, 6), dtype=np.float32), (3, 5, 6)),
    (RANDOM.random((4, 5, 6, 3)), (3, 5, 6)),
    (RANDOM.random((4, 2, 5, 6)).astype(np.float16), (2, 5, 6)),
]


@pytest.mark.parametrize(("images", "shape"), ARRAYS)
def test_npz(images: np.ndarray, shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(len(images)))
    image, label = open_data(f"npz:{tmp_path / 'a.npz'}")[-1]
    assert (image.shape, image.dtype, label) == (shape, torch.float32, len(images) - 1)
    np.savez_compressed(tmp_path / "b.npz", images=images)
    alone = open_data(f"npz:{tmp_path / 'b.npz'}")[len(images) - 1]
    assert torch.equal(alone, image)


@pytest.mark.parametrize(("images", "shape"), ARRAYS)
def test_zarr_equals_npz(images: np.ndarray, shape: tuple[int, ...], tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    group.create_array("images", data=images, chunks=(3, *images.shape[1:]))
    group.create_array("labels", data=np.arange(len(images)), chunks=(2,))
    zarr.create_array(str(tmp_path / "b.zarr"), data=images, chunks=(2, *images.shape[1:]))
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(len(images)))
    expected = open_data(f"npz:{tmp_path / 'a.npz'}")
    dataset, alone = (open_data(f"zarr:{tmp_path / name}.zarr") for name in "ab")
    for index in (*range(len(images)), 0):
        assert torch.equal(dataset[index][0], expected[index][0])
        assert dataset[index][1] == expected[index][1]
        assert torch.equal(alone[index], expected[index][0])
    batch, labels = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch.shape == (3, *shape)
    assert labels.tolist() == [0, 1, 2]


BAD_ARRAYS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "none": ({}, "no images"),
    "empty": ({"images": np.zeros((0, 3, 4, 4), np.uint8)}, "empty"),
    "no pixels": ({"images": np.zeros((2, 3, 0, 4), np.uint8)}, "wrong form"),
    "flat": ({"images": np.zeros((2, 9), np.uint8)}, "wrong form"),
    "integers": ({"images": np.zeros((2, 3, 4, 4), np.int64)}, "wrong form"),
    "labels": ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, np.int64)}, "labels do not fit"),
    "one-hot": ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros((2, 3))}, "labels do not fit"),
    "NaN": ({"images": np.full((2, 4, 4), np.nan)}, "NaN"),
}


@pytest.mark.parametrize(("arrays", "words"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_arrays_of_the_wrong_form(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    for name, values in arrays.items():
        group.create_array(name, data=values) if values.size else group.create_array(
            name, shape=values.shape, dtype=values.dtype
        )
    for spec in (f"npz:{tmp_path / 'a.npz'}", f"zarr:{tmp_path / 'a.zarr'}"):
        with pytest.raises(DataError, match=words) as error:
            open_data(spec)
        assert "to do:" in str(error.value)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([Payload(tmp_path / "executed")], dtype=object))
    with pytest.raises(DataError, match="holds objects"):
        open_data(f"npz:{tmp_path / 'a.npz'}")
    assert not (tmp_path / "executed").exists()


CODE = """
import torch
def images(split="none", count=3, shape=(3, 4, 4)):
    return [(torch.zeros(shape), split)] * count
def integers():
    return [torch.zeros(3, 4, 4, dtype=torch.int64)]
def generator():
    yield 1
def fails():
    raise RuntimeError("no such luck")
"""


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_of_the_user.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "data_of_the_user", raising=False)


@pytest.mark.usefixtures("working_directory")
def test_functions() -> None:
    dataset = open_data("data_of_the_user:images?count=2", split="test", trust_code=True)
    assert len(dataset) == 2  # type: ignore[arg-type]
    assert dataset[0][1] == "test"


@pytest.mark.usefixtures("working_directory")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("data_of_the_user:images?count=0", "empty"),
        ("data_of_the_user:integers", "wrong form"),
        ("data_of_the_user:generator", "with a length"),
        ("data_of_the_user:fails", "no such luck"),
        ("data_of_the_user:image", "images"),
        ("mnits", "mnist"),
        ("imagefolder:nowhere", "no image folder"),
        ("imagefolder:.", "no images"),
        ("npz:nowhere", "no such file"),
        ("npz:data_of_the_user.py", "corrupt"),
        ("zarr:nowhere", "no Zarr array"),
        ("zarr:", "no name"),
    ],
)
def test_names_of_nothing(spec: str, words: str) -> None:
    with pytest.raises(DataError) as error:
        open_data(spec, trust_code=True)
    assert words in str(error.value)
    assert "to do:" in str(error.value)


def test_splits_have_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such split"):
        open_data("mnist", data_root=tmp_path, split="validation")


def test_downloads_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(root: str, download: bool) -> None:
        asked.append(root)
        write_mnist(Path(root) / "MNIST" / "raw", False)

    constructor: Callable[..., None] = download
    monkeypatch.setattr("torchvision.datasets.MNIST", constructor)
    with pytest.raises(DataError, match="not there"):
        open_data("mnist", data_root=tmp_path)
    assert asked == []
    assert len(open_data("mnist", data_root=tmp_path, download=True)) == 7  # type: ignore[arg-type]
    open_data("mnist", data_root=tmp_path, download=True)
    assert asked == [str(tmp_path)]
