"""From an image as it is stored to the tensor that a model takes, as explicit numbers.

A run records its preprocessing, so it is data, not code: sizes in pixels, mean and standard deviation per channel
of values in [0, 1].
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from streamsparse.errors import DataError, UsageError
from streamsparse.intake.specs import parse_spec

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")  # of torchvision


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop, pad, scale to [0, 1], choose channels, normalise; in this order, absent steps skipped.

    Attributes:
        resize: (height, width), or (side,) for the shorter side, in pixels.
        crop: (height, width) around the centre.
        pad: pixels of zero on every side.
        channels: 1 or 3; a grey image is repeated, a colour image is turned grey.
        mean, std: per channel (or one for all), of values in [0, 1].
        interpolation: one of INTERPOLATIONS.
    """

    resize: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None
    pad: int = 0
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sizes = (*(self.resize or ()), *(self.crop or ()))
        right = (
            all(size > 0 for size in sizes)
            and self.pad >= 0
            and self.channels in (None, 1, 3)
            and (self.mean is None) == (self.std is None)
            and len(self.mean or ()) == len(self.std or ())
            and all(math.isfinite(value) for value in self.mean or ())
            and all(0 < value < math.inf for value in self.std or ())
            and self.interpolation in INTERPOLATIONS
        )
        if not right:
            raise UsageError(
                "The preprocessing contradicts itself.",
                expected="positive sizes, 1 or 3 channels, as many means as positive standard deviations",
                got=self,
                remedy="Give for example --normalize 0.485/0.456/0.406,0.229/0.224/0.225 --size 224.",
            )

    def __call__(self, image: Image | Tensor) -> Tensor:
        """The model's input, float32 (channels, height, width).

        Args:
            image: a PIL image, or a tensor (channels, height, width): uint8 from 0 to 255, or floating point,
                which is taken as scaled already.

        Raises:
            DataError: the number of channels does not fit the mean.
        """
        from torchvision.transforms import InterpolationMode, functional  # seconds, and not every data set needs it

        interpolation = InterpolationMode(self.interpolation)
        if self.resize:
            image = functional.resize(image, list(self.resize), interpolation, antialias=True)
        if self.crop:
            image = functional.center_crop(image, list(self.crop))
        pixels = image if isinstance(image, Tensor) else functional.pil_to_tensor(image)
        if not pixels.is_floating_point():
            pixels = functional.convert_image_dtype(pixels, torch.float32)
        pixels = _with_channels(pixels.to(torch.float32), self.channels)
        if self.pad:
            pixels = functional.pad(pixels, [self.pad] * 4)
        return self._normalised(pixels)

    def _normalised(self, pixels: Tensor) -> Tensor:
        if self.mean is None or self.std is None:
            return pixels
        if len(self.mean) not in (1, pixels.shape[0]):
            raise DataError(
                "The images have another number of channels than the mean.",
                expected=f"{len(self.mean)} channels",
                got=tuple(pixels.shape),
                remedy="Give one mean per channel, or choose channels of the preprocessing.",
            )
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Rebuild what `to_json` gave, through JSON."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)


def published_preprocessing(model_spec: str) -> Preprocessing | None:
    """What the published weights of an architecture expect; None where nothing is published.

    Args:
        model_spec: as for `build_model`; its options are ignored.
    """
    spec = parse_spec(model_spec, UsageError)
    if spec.kind == "torchvision":
        return _torchvision(spec.name)
    return _timm(spec.name) if spec.kind == "timm" else None


def choose_preprocessing(
    model_spec: str, *, normalize: str | None = None, size: str | None = None, channels: int | None = None
) -> Preprocessing:
    """The published preprocessing, unless the user gives one.

    Args:
        normalize: "MEAN,STD", each one number or one per channel separated by slashes.
        size: "SIDE" or "HEIGHTxWIDTH" in pixels, resized to exactly; alone it replaces the published size.

    Raises:
        UsageError: text that does not parse.
    """
    published = published_preprocessing(model_spec)
    if normalize is None and size is None and channels is None:
        return published or Preprocessing()
    base = published or Preprocessing()
    mean, std = (base.mean, base.std) if normalize is None else _parse_normalize(normalize)
    if size is None:
        keep = base if normalize is None else Preprocessing()
        return Preprocessing(keep.resize, keep.crop, 0, channels, mean, std, keep.interpolation)
    height, width = _parse_size(size)
    return Preprocessing((height, width), None, 0, channels, mean, std, base.interpolation)


def _torchvision(name: str) -> Preprocessing | None:
    import torchvision

    if name not in torchvision.models.list_models():
        return None
    weights = torchvision.models.get_model_weights(name)
    default = getattr(weights, "DEFAULT", None) or next(iter(weights), None)
    if default is None:
        return None
    preset = default.transforms()
    if not all(hasattr(preset, field) for field in ("resize_size", "crop_size", "mean", "std")):
        return None
    crop = list(preset.crop_size) * 2
    return Preprocessing(
        resize=tuple(preset.resize_size),
        crop=(crop[0], crop[1]),
        channels=len(preset.mean),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _timm(name: str) -> Preprocessing | None:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        return None
    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is None:
        return None
    config = timm.data.resolve_data_config(pretrained_cfg=published.to_dict())
    channels, height, width = config["input_size"]
    squash = config["crop_mode"] == "squash"
    scaled = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    shorter = scaled[:1] if height == width else scaled
    return Preprocessing(
        resize=(height, width) if squash else shorter,
        crop=None if squash else (height, width),
        channels=channels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bilinear",
    )


def _with_channels(pixels: Tensor, channels: int | None) -> Tensor:
    if channels is None or pixels.shape[0] == channels:
        return pixels
    if channels == 1:
        from torchvision.transforms import functional

        return functional.rgb_to_grayscale(pixels[:3]) if pixels.shape[0] >= 3 else pixels[:1]
    return pixels[:3] if pixels.shape[0] > 3 else pixels[:1].repeat(channels, 1, 1)


def _parse_normalize(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = (tuple(float(value) for value in part.split("/")) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            "The normalisation does not parse.",
            expected="MEAN,STD, each one number or one per channel separated by slashes",
            got=text,
            where="--normalize",
            remedy="Give for example 0.1307,0.3081 or 0.485/0.456/0.406,0.229/0.224/0.225.",
        ) from error
    return mean, std


def _parse_size(text: str) -> tuple[int, int]:
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else (sides[0], *sides)
    except ValueError as error:
        raise UsageError(
            "The image size does not parse.",
            expected="SIDE or HEIGHTxWIDTH in pixels",
            got=text,
            where="--size",
            remedy="Give for example 224 or 240x320.",
        ) from error
    return height, width
