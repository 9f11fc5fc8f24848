"""Calibration images: a seeded sample of a data set, the same on every node and after every restart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from streamsparse.errors import DataError, RunMismatchError, StreamsparseError


@dataclass(frozen=True, eq=False)
class Images:
    """A sample of a data set, in a fixed order.

    Attributes:
        dataset: items are an image tensor or a tuple that begins with one.
        indices: of the sampled items, in the order of the run.
        length: of the whole data set.
        seed: of the sample.
        workers: processes that load images.
        collate: as in `torch.utils.data.DataLoader`.
    """

    dataset: Dataset[Any]
    indices: tuple[int, ...]
    length: int
    seed: int
    workers: int = 0
    collate: Callable[[list[Any]], Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def example(self) -> Tensor:
        """The first image as a batch of one, (1, *shape).

        Raises:
            DataError: it is not a floating-point tensor.
        """
        return next(self.batches([range(1)]))

    def batches(self, spans: Sequence[range]) -> Iterator[Tensor]:
        """The images at the given positions of the sample, one batch per span, (images, *shape)."""
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=[[self.indices[position] for position in span] for span in spans],
            num_workers=self.workers if len(spans) > 1 else 0,
            collate_fn=self.collate,
        )
        items = iter(loader)
        while (item := _next(items)) is not _END:
            yield _image_batch(item)

    def digest(self) -> str:
        """SHA-256 over the sample's indices and its first image: the identity of the calibration data."""
        identity = hashlib.sha256(repr((self.length, self.indices)).encode())
        identity.update(batch_digest(self.example).encode())
        return identity.hexdigest()


def calibration_images(data: object, *, images: int | None = None, seed: int = 0) -> Images:
    """Sample calibration images.

    Args:
        data: a map-style Dataset, a DataLoader over one (its collation and number of workers are kept, its own
            order is not: the sample must be repeatable), or a tensor (images, *shape).
        images: how many; None or more than there are takes all.
        seed: of the sample.

    Raises:
        DataError: no images, or data of another kind.
    """
    workers, collate = 0, None
    if isinstance(data, Tensor):
        data = TensorDataset(data)
    if isinstance(data, DataLoader):
        workers, collate, data = data.num_workers, data.collate_fn, data.dataset
    sized = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not sized or isinstance(data, IterableDataset):
        raise DataError(
            "Calibration needs data with a length and random access, so that a capture can resume.",
            expected="a map-style Dataset, a DataLoader over one, or a tensor of images",
            got=type(data).__name__,
            remedy="wrap the data in a torch.utils.data.Dataset with __len__ and __getitem__",
        )
    length = len(cast(Sized, data))
    count = length if images is None else min(images, length)
    if count <= 0:
        raise DataError(
            "There are no calibration images.",
            expected="at least one image",
            got=f"a data set of {length} and images={images}",
            remedy="check the data set, its split and --images",
        )
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return Images(cast("Dataset[Any]", data), tuple(order), length, seed, workers, collate)


def captured_images(about: Mapping[str, Any], data: object) -> tuple[Images, Images]:
    """The sample that a run was captured over, and all images in the seeded order that it is the beginning of.

    Args:
        about: the manifest's description of the data.
        data: the data set of the capture.

    Raises:
        RunMismatchError: another data set, or other preprocessing.
    """
    everything = calibration_images(data, seed=about["seed"])
    sample = replace(everything, indices=everything.indices[: about["images"]])
    if sample.digest() != about["digest"]:
        raise RunMismatchError(
            "These are not the images that the run was captured over.",
            expected=f"{about['spec'] or 'data'} of {about['length']} items, SHA-256 {about['digest'][:16]}…",
            got=f"{sample.length} items, {sample.digest()[:16]}…",
            remedy="pass the calibration data of the capture, with the same preprocessing",
        )
    return sample, everything


def batch_digest(batch: Tensor) -> str:
    """SHA-256 of a batch's values and shape."""
    values = batch.detach().cpu().contiguous()
    identity = hashlib.sha256(repr((tuple(values.shape), str(values.dtype))).encode())
    identity.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return identity.hexdigest()


_END = object()


def _next(items: Iterator[Any]) -> object:
    """The next item, or `_END`; whatever the data set raises becomes a DataError."""
    try:
        return next(items, _END)
    except StreamsparseError:
        raise
    except Exception as error:
        raise DataError(
            "The data set failed while a batch was read.",
            expected="images of one shape",
            got=f"{type(error).__name__}: {error}",
            remedy="check the files and the preprocessing; resize or crop all images to the same size",
        ) from error


def _image_batch(item: object) -> Tensor:
    first = item[0] if isinstance(item, (list, tuple)) else item
    if not isinstance(first, Tensor) or not first.is_floating_point():
        raise DataError(
            "The data set does not yield image tensors.",
            expected="a floating-point tensor, or a tuple that begins with one",
            got=f"{type(first).__name__}{f' of {first.dtype}' if isinstance(first, Tensor) else ''}",
            remedy="apply the model's preprocessing (to tensor, scale, normalise) in the data set",
        )
    return first
