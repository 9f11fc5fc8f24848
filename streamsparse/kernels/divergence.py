"""How far a changed network's outputs are from the original's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from streamsparse.errors import ModelError, NonFiniteError

Measure = Literal["divergence", "squared difference"]
"""Of class logits: mean Kullback-Leibler divergence of the probabilities from the original's, nats per image. Of
other outputs: mean squared difference over the variance of the original's outputs over the images."""


def measure_of(outputs: Tensor) -> Measure:
    """Outputs (images, classes) with two classes or more are taken for logits."""
    return "divergence" if outputs.dim() == 2 and outputs.shape[1] > 1 else "squared difference"


def output_loss(original: Sequence[Tensor], changed: Sequence[Tensor]) -> float:
    """The changed outputs' mean distance from the original's: the mean of `image_losses`, in float64."""
    return float(image_losses(original, changed).mean())


def image_losses(original: Sequence[Tensor], changed: Sequence[Tensor]) -> np.ndarray:
    """The changed outputs' distance from the original's, image by image, (images,) float64.

    Args:
        original, changed: batches (images, ...), the same images in the same batches.

    Raises:
        NonFiniteError: changed outputs that are NaN or infinite.
        ModelError: outputs that do not vary from image to image, where a squared difference has no scale.
    """
    if not all(bool(torch.isfinite(batch).all()) for batch in changed):
        raise NonFiniteError(
            "The cut network's outputs are not finite.", expected="finite outputs", got="NaN or infinity",
            remedy="check the calibration images and the model's own outputs on them",
        )  # fmt: skip
    if measure_of(original[0]) == "divergence":
        return _joined(map(_divergences, original, changed))
    squares = _joined(
        (a.double() - b.double()).square().reshape(len(a), -1).sum(1)
        for a, b in zip(original, changed, strict=True)
    )
    return squares * len(squares) / _spread(original)


def _joined(batches: Iterable[Tensor]) -> np.ndarray:
    return np.concatenate([batch.cpu().numpy() for batch in batches])


def _divergences(original: Tensor, changed: Tensor) -> Tensor:
    """Σ_c p_c (log p_c - log q_c) of every image, (images, classes) each; round-off does not fall below 0."""
    wanted, given = original.double().log_softmax(1), changed.double().log_softmax(1)
    return (wanted.exp() * (wanted - given)).sum(1).clamp(min=0)


def _spread(original: Sequence[Tensor]) -> float:
    """Σ of squared distances from the mean output."""
    images = sum(len(batch) for batch in original)
    mean = sum((batch.double().sum(0) for batch in original), torch.zeros((), dtype=torch.float64)) / images
    spread = sum(float((batch.double() - mean).square().sum()) for batch in original)
    if spread <= 0:
        raise ModelError(
            "The original's outputs are the same for every image.", expected="outputs that vary", got="no variance",
            remedy="measure on more images, or on such that differ",
        )  # fmt: skip
    return spread
