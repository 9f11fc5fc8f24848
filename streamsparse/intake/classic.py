"""MNIST, Fashion-MNIST and CIFAR-10 from the files that torchvision downloads, without unpickling objects."""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy.typing import NDArray

from streamsparse.errors import DataError, StorageError
from streamsparse.intake.images import data_error

Bytes = NDArray[np.uint8]

# where the files lie under the data root: torchvision's folder, a folder of the name, the root itself
CLASSIC = {
    "mnist": ("MNIST/raw", "mnist", "."),
    "fashion-mnist": ("FashionMNIST/raw", "fashion-mnist", "."),
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10", "."),
}


def classic_arrays(name: str, root: Path, split: str, *, download: bool) -> tuple[Bytes, NDArray[np.int64]]:
    """Images (N, height, width) or (N, 3, height, width) and labels (N,) of a split.

    Raises:
        DataError: the files are not there, or damaged.
        StorageError: the download failed.
    """
    read = _read_cifar if name == "cifar10" else _read_mnist
    folders = [root / folder for folder in CLASSIC[name]]
    found = next((arrays for folder in folders if (arrays := read(folder, split)) is not None), None)
    if found is None and download:
        _download(name, root)
        found = next((arrays for folder in folders if (arrays := read(folder, split)) is not None), None)
    if found is None:
        expected = f"the files of {name} in {root / CLASSIC[name][0]} or {root / name}"
        remedy = "Give the right data root, or ask for the download."
        raise data_error("The data set is not there.", expected, "nothing", root, remedy)
    return found


def _download(name: str, root: Path) -> None:
    import torchvision  # seconds, and few calls need it

    classes = {
        "mnist": torchvision.datasets.MNIST,
        "fashion-mnist": torchvision.datasets.FashionMNIST,
        "cifar10": torchvision.datasets.CIFAR10,
    }
    try:
        classes[name](str(root), download=True)
    except Exception as error:  # network, disk and checksum problems each raise their own kind
        raise StorageError(
            f"{name} could not be downloaded.",
            expected="a connection to the servers that torchvision uses, and room on the disk",
            got=error,
            where=root,
            remedy="Try again, or put the files there by hand.",
        ) from error


def _read_mnist(folder: Path, split: str) -> tuple[Bytes, NDArray[np.int64]] | None:
    start = "train" if split == "train" else "t10k"
    paths = [_present(folder / f"{start}-{what}-ubyte") for what in ("images-idx3", "labels-idx1")]
    if paths[0] is None or paths[1] is None:
        return None
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    return images, labels.astype(np.int64)


def _present(path: Path) -> Path | None:
    candidates = (path, path.with_name(path.name + ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_idx(path: Path, dims: int) -> Bytes:
    """The bytes of an IDX file (two zeros, type 8, number of dimensions, big-endian sizes, values).

    Raises:
        DataError: another type or number of dimensions, or too few or too many values.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise data_error("A file of the data set is corrupt.", "a readable IDX file", error, path) from error
    if content[:4] != bytes((0, 0, 8, dims)) or len(content) < 4 + 4 * dims:
        raise data_error("A file of the data set is not IDX.", f"bytes in {dims} dimensions", content[:4], path)
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dims, 4))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dims)
    if values.size != prod(shape):
        raise data_error("A file of the data set is truncated.", f"{prod(shape)} values", values.size, path)
    return values.reshape(shape)


def _read_cifar(folder: Path, split: str) -> tuple[Bytes, NDArray[np.int64]] | None:
    names = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    for suffix, read in ((".bin", _cifar_binary), ("", _cifar_pickle)):
        paths = [folder / (name + suffix) for name in names]
        if all(path.is_file() for path in paths):
            batches = [read(path) for path in paths]
            pixels = np.concatenate([images.reshape(-1, 3, 32, 32) for images, _ in batches])
            return pixels, np.concatenate([labels for _, labels in batches])
    return None


def _cifar_binary(path: Path) -> tuple[Bytes, NDArray[np.int64]]:
    values = np.fromfile(path, np.uint8)
    if values.size == 0 or values.size % 3073:
        raise data_error("A file of the data set is truncated.", "records of 3,073 bytes", values.size, path)
    records = values.reshape(-1, 3073)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _latin_bytes(text: str, _encoding: str) -> bytes:
    """How a protocol-2 pickle of Python 3 spells bytes."""
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """The Python edition of CIFAR-10 is a pickle of NumPy arrays: exactly these are built, nothing else."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return self._allowed[module, name]


def _cifar_pickle(path: Path) -> tuple[Bytes, NDArray[np.int64]]:
    try:
        # written by Python 2, whose texts are bytes
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        images = np.asarray(batch["data"], dtype=np.uint8)
        labels = np.asarray(batch["labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle raises anything
        raise data_error("A file of the data set is corrupt.", "a CIFAR-10 batch", error, path) from error
    if images.ndim != 2 or images.shape[1] != 3072 or labels.shape != images.shape[:1]:
        got = f"{images.shape}, {labels.shape}"
        raise DataError("A file of the data set is corrupt.", expected="(N, 3072), (N,)", got=got, where=path)
    return images, labels
