"""Folds of statistics: held-out errors without data.

Image number i of the run belongs to fold i mod F, whatever the chunking, so a capture can grow without moving
an image from one fold to another. The sums of the folds are disjoint and add up to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from streamsparse.kernels.shift_sums import ShiftSums, empty_shifts, finish
from streamsparse.kernels.shifts import update_shifts
from streamsparse.kernels.statistics import Moments, Sums, merge, moments
from streamsparse.types import LayerGeometry

FoldSums = tuple[Sums, ...]
"""Finished sums, one per fold."""

FoldShifts = tuple[ShiftSums, ...]
"""Accumulators that are still growing, one per fold."""


def empty_folds(geometry: LayerGeometry, folds: int, device: torch.device | str = "cpu") -> FoldShifts:
    """`folds` empty accumulators."""
    return tuple(empty_shifts(geometry, device) for _ in range(folds))


def update_folds(
    sums: FoldShifts,
    inputs: Tensor,
    outputs: Tensor,
    geometry: LayerGeometry,
    first_image: int,
    product_dtype: torch.dtype = torch.float64,
) -> None:
    """Add consecutive images, the first of them number `first_image` of the run, in place; see `update_shifts`."""
    folds = len(sums)
    for fold, part in enumerate(sums):
        chosen = slice((fold - first_image) % folds, None, folds)
        if inputs[chosen].shape[0]:
            update_shifts(part, inputs[chosen], outputs[chosen], geometry, product_dtype=product_dtype)


def finish_folds(sums: FoldShifts, geometry: LayerGeometry) -> FoldSums:
    """Gram, cross and moments of every fold."""
    return tuple(finish(part, geometry) for part in sums)


def merge_folds(first: FoldSums, second: FoldSums) -> FoldSums:
    """Fold by fold; see `merge`."""
    return tuple(merge(a, b) for a, b in zip(first, second, strict=True))


def total(sums: Sequence[Sums]) -> Sums:
    """The sums over all given folds."""
    return reduce(merge, sums)


def split_moments(sums: FoldSums, held_out: int) -> tuple[Moments, Moments]:
    """Training moments of all folds but one, and the held-out fold's about the *training* means.

    A model fitted on the first predicts ȳ + Q(x − x̄) with the training means, so its exact held-out error is
    tr(YᵀY) − 2⟨Q,B⟩ + ⟨Q, G Q⟩ in the second.
    """
    training = moments(total([part for fold, part in enumerate(sums) if fold != held_out]))
    return training, moments(sums[held_out], about=(training.mean_x, training.mean_y))
