"""Open a data set by name.

mnist, fashion-mnist, cifar10     in the layout of torchvision under the data root
imagefolder:PATH                  one subdirectory per class, or images without labels
npz:PATH                          NumPy arrays `images` and, if there are any, `labels`
zarr:PATH                         the same as Zarr arrays, or one array of images
package.module:function           a function that returns a data set of (image tensor, label) or image tensors
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamsparse.errors import DataError
from streamsparse.intake.classic import CLASSIC, classic_arrays
from streamsparse.intake.images import ArrayImages, FileImages, Item, Transform, data_error
from streamsparse.intake.preprocessing import Preprocessing
from streamsparse.intake.specs import bad_spec, named_callable, parse_spec, suggestion
from streamsparse.store.arrays import read_arrays

SPLITS = ("train", "test")


def open_data(
    spec: str,
    *,
    data_root: str | Path | None = None,
    split: str = "train",
    preprocessing: Preprocessing | None = None,
    download: bool = False,
    trust_code: bool = False,
) -> Dataset[Item]:
    """A data set with a length, whose items are (image, label) or, without labels, the image alone.

    Images are float32 tensors (channels, height, width); the first item is checked here.

    Args:
        spec: as above.
        data_root: where the named data sets lie; "data" by default.
        split: "train" or "test": of the named data sets; of an image folder with subdirectories of these names
            ("val" serves as test); given to a function that has a parameter `split`; no meaning for arrays.
        preprocessing: applied to every image; None: values scaled to [0, 1] only. A function's items are taken
            as they are.
        download: fetch mnist, fashion-mnist or cifar10 if they are not there.
        trust_code: `MODULE:FUNCTION` may come from the current directory. Its code runs.

    Raises:
        DataError: unknown name, nothing there, empty, or of wrong shapes.
    """
    if split not in SPLITS:
        raise data_error("There is no such split.", " or ".join(SPLITS), split, spec)
    transform: Transform = preprocessing or Preprocessing()
    kind = spec.partition(":")[0]
    if spec in CLASSIC:
        images, labels = classic_arrays(spec, Path(data_root or "data"), split, download=download)
        dataset: Any = ArrayImages(images, labels, transform, spec)
    elif kind in _READERS and ":" in spec:
        path = parse_spec(spec, DataError, options=False).name
        dataset = _READERS[kind](path, split, transform)
    elif ":" in spec:
        dataset = _from_function(spec, split, trust_code)
    else:
        known = [*CLASSIC, *(f"{reader}:" for reader in _READERS)]
        raise bad_spec(DataError, spec, ", ".join([*known, "MODULE:FUNCTION"]), spec, suggestion(spec, known))
    _check_first(dataset, spec)
    return cast("Dataset[Item]", dataset)


def _image_folder(path: str, split: str, transform: Transform) -> Dataset[Item]:
    names = ("train",) if split == "train" else ("test", "val")
    inside = [Path(path) / name for name in names if (Path(path) / name).is_dir()]
    return FileImages(inside[0] if inside else Path(path), transform)


def _npz(path: str, _split: str, transform: Transform) -> Dataset[Item]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise data_error("The file is not an archive of arrays.", "an .npz file", "one array", path)
            arrays = {name: archive[name] for name in archive.files if name in ("images", "labels")}
    except FileNotFoundError as error:
        raise data_error("There is no such file.", "an .npz file", "nothing", path) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise data_error("The archive is corrupt or holds objects.", "plain arrays", error, path) from error
    return _from_arrays(arrays, path, transform)


def _zarr(path: str, _split: str, transform: Transform) -> Dataset[Item]:
    return _from_arrays(read_arrays(path), path, transform)


_READERS: dict[str, Callable[[str, str, Transform], Dataset[Item]]] = {
    "imagefolder": _image_folder,
    "npz": _npz,
    "zarr": _zarr,
}


def _from_arrays(arrays: dict[str, Any], path: str, transform: Transform) -> Dataset[Item]:
    if "images" not in arrays:
        raise data_error("There are no images.", "an array called images", sorted(arrays) or "no array", path)
    return ArrayImages(arrays["images"], arrays.get("labels"), transform, path)


def _from_function(spec: str, split: str, trust_code: bool) -> Any:
    function = named_callable(spec, DataError, trust_code=trust_code)
    options = parse_spec(spec, DataError).options
    try:
        if "split" in inspect.signature(function).parameters:
            options = {"split": split} | options
        dataset = function(**options)
    except Exception as error:  # whatever somebody's function raises
        raise bad_spec(DataError, spec, "a function that returns a data set", error) from error
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        got = type(dataset).__qualname__
        raise bad_spec(DataError, spec, "a data set with a length and items by number", got)
    return dataset


def _check_first(dataset: Any, spec: str) -> None:
    if len(dataset) == 0:
        raise data_error("The data set is empty.", "at least one image", "none", spec)
    item = dataset[0]
    image = item[0] if isinstance(item, (tuple, list)) and len(item) == 2 else item
    if not isinstance(image, Tensor) or image.dim() < 2 or not image.is_floating_point():
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__qualname__
        expected = "floating-point tensors (channels, height, width), alone or with a label"
        raise data_error("The items of the data set have the wrong form.", expected, got, f"{spec}, item 0")
    if not torch.isfinite(image).all():
        raise data_error("An image holds NaN or infinity.", "finite values", "NaN or inf", f"{spec}, item 0")
