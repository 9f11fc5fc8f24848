"""Data sets over arrays and over image files: items are (image, label), or the image alone without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from streamsparse.errors import DataError

Item = Tensor | tuple[Tensor, int]
Transform = Callable[[Any], Tensor]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


class ArrayImages(Dataset[Item]):
    """Images and labels in arrays; chunked arrays (Zarr) are read chunk by chunk, in order of use.

    Args:
        images: (N, channels, height, width), (N, height, width) or, with 1 or 3 channels last,
            (N, height, width, channels); uint8 or floating point.
        labels: (N,) whole numbers, or None.
        transform: from (channels, height, width) to the model's input.
        where: for messages.

    Raises:
        DataError: empty, or shapes or dtypes that are none of these.
    """

    def __init__(self, images: Any, labels: Any | None, transform: Transform, where: str) -> None:
        _check_arrays(images, labels, where)
        self.labels = None if labels is None else np.asarray(labels[:], dtype=np.int64)
        self._images = images
        self._transform = transform
        self._channels_last = len(images.shape) == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3)
        chunks = getattr(images, "chunks", None)
        self._chunk = int(chunks[0]) if chunks else len(images)
        self._held: tuple[int, Any] = (0, images) if not chunks else (-1, None)

    def __len__(self) -> int:
        return int(self._images.shape[0])

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        chunk, place = divmod(index, self._chunk)
        if self._held[0] != chunk:
            start = chunk * self._chunk
            self._held = (chunk, np.asarray(self._images[start : start + self._chunk]))
        # a copy: the array may be read-only or shared
        pixels = torch.from_numpy(np.array(self._held[1][place]))
        if pixels.dim() == 2:
            pixels = pixels[None]
        image = self._transform(pixels.permute(2, 0, 1).contiguous() if self._channels_last else pixels)
        return image if self.labels is None else (image, int(self.labels[index]))


class FileImages(Dataset[Item]):
    """Image files; a class per subdirectory in alphabetical order, or one directory without labels.

    Raises:
        DataError: no directory or no images; an unreadable image when it is its turn.
    """

    def __init__(self, directory: Path, transform: Transform) -> None:
        if not directory.is_dir():
            raise data_error("There is no image folder.", "a directory", "nothing", directory)
        self.classes = tuple(sorted(entry.name for entry in directory.iterdir() if entry.is_dir()))
        folders = [directory / name for name in self.classes] or [directory]
        found = [(path, label) for label, folder in enumerate(folders) for path in _image_files(folder)]
        if not found:
            expected = f"images ({', '.join(IMAGE_SUFFIXES)}) in it or in one subdirectory per class"
            raise data_error("The image folder holds no images.", expected, "none", directory)
        self.paths: Sequence[Path] = [path for path, _ in found]
        self.labels = np.array([label for _, label in found]) if self.classes else None
        self._transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index]
        try:
            with Image.open(path) as stored:
                picture = stored.convert("L" if stored.mode in ("1", "L") else "RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            remedy = "Remove or replace the file."
            raise data_error("An image cannot be read.", "a whole image file", error, path, remedy) from error
        image = self._transform(picture)
        return image if self.labels is None else (image, int(self.labels[index]))


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _check_arrays(images: Any, labels: Any | None, where: str) -> None:
    shape, kind = tuple(images.shape), np.dtype(images.dtype)
    if len(shape) not in (3, 4) or 0 in shape[1:] or not (kind == np.uint8 or kind.kind == "f"):
        expected = "uint8 or floating-point images, (N, channels, height, width) or (N, height, width)"
        raise data_error("The images have the wrong form.", expected, f"{kind} {shape}", where)
    if shape[0] == 0:
        raise data_error("The data set is empty.", "at least one image", f"shape {shape}", where)
    if labels is None:
        return
    label_shape, label_kind = tuple(labels.shape), np.dtype(labels.dtype)
    if label_shape != shape[:1] or label_kind.kind not in "iu":
        expected = f"{shape[0]} whole numbers, one per image"
        raise data_error("The labels do not fit the images.", expected, f"{label_kind} {label_shape}", where)


def data_error(summary: str, expected: object, got: object, where: object, remedy: str | None = None) -> DataError:
    """A data set that cannot be used."""
    return DataError(
        summary,
        expected=expected,
        got=got,
        where=where,
        remedy=remedy or "Check the path and the contents of the data set.",
    )
