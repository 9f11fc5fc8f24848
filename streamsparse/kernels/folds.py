"""Folds of statistics: held-out errors without data.

Image number i of the run belongs to fold i mod F, whatever the chunking, so a capture can grow without moving
an image from one fold to another. The sums of the folds are disjoint and add up to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from streamsparse.kernels.gram_blocks import BlockSums, GramBlock, empty_block, update_block
from streamsparse.kernels.precision import ProductDtype
from streamsparse.kernels.shift_sums import ShiftSums, empty_shifts, finish
from streamsparse.kernels.shifts import BLOCK_BYTES, update_shifts
from streamsparse.kernels.statistics import Moments, Sums, merge, moments, origin
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
    product_dtype: ProductDtype = "float32",
) -> None:
    """Add consecutive images, the first of them number `first_image` of the run, in place; see `update_shifts`."""
    for fold, part in enumerate(sums):
        chosen = _images_of(fold, len(sums), first_image)
        if inputs[chosen].shape[0]:
            update_shifts(part, inputs[chosen], outputs[chosen], geometry, product_dtype=product_dtype)


def finish_folds(sums: FoldShifts, geometry: LayerGeometry) -> FoldSums:
    """Gram, cross and moments of every fold."""
    return tuple(finish(part, geometry) for part in sums)


def empty_block_folds(
    geometry: LayerGeometry, block: GramBlock, folds: int, device: torch.device | str = "cpu"
) -> tuple[BlockSums, ...]:
    """`folds` empty accumulators of one block of the Gram."""
    return tuple(empty_block(geometry, block, device) for _ in range(folds))


def update_block_folds(
    sums_by_fold: Sequence[BlockSums],
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    block: GramBlock,
    first_image: int,
    product_dtype: ProductDtype = "float32",
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add consecutive images of the whole layer, the first of them number `first_image`; see `update_block`."""
    for fold, part in enumerate(sums_by_fold):
        chosen = _images_of(fold, len(sums_by_fold), first_image)
        if inputs[chosen].shape[0]:
            responses = None if outputs is None else outputs[chosen]
            update_block(
                part,
                inputs[chosen],
                responses,
                geometry,
                block,
                product_dtype=product_dtype,
                block_bytes=block_bytes,
            )


def _images_of(fold: int, folds: int, first_image: int) -> slice:
    """Which images of a batch belong to the fold."""
    return slice((fold - first_image) % folds, None, folds)


def merge_folds(first: FoldSums, second: FoldSums) -> FoldSums:
    """Fold by fold; see `merge`."""
    return tuple(merge(a, b) for a, b in zip(first, second, strict=True))


def total(sums: Sequence[Sums]) -> Sums:
    """The sums over all given folds, at least one; of a single one, itself."""
    if len(sums) == 1:
        return sums[0]
    found = merge(sums[0], sums[1])
    for part in sums[2:]:
        for name, tensor in found.tensors().items():
            tensor += getattr(part, name)
    return found


def split_moments(sums: FoldSums, held_out: int, centred: bool = True) -> tuple[Moments, Moments]:
    """Training moments of all folds but one, and the held-out fold's; see the functions for each."""
    return training_moments(sums, held_out, centred), held_out_moments(sums, held_out, centred)


def training_moments(sums: FoldSums, held_out: int, centred: bool = True) -> Moments:
    """Of all folds but one.

    Args:
        centred: about their mean, for a layer with a bias; else about the origin.
    """
    training = total(_others(sums, held_out))
    return moments(training) if centred else moments(training, about=origin(training))


def held_out_moments(sums: FoldSums, held_out: int, centred: bool = True) -> Moments:
    """Of one fold about the *training* means, or the origin.

    A model fitted on the others predicts ȳ + Q(x − x̄) with the training means, so its exact held-out error is
    tr(YᵀY) − 2⟨Q,B⟩ + ⟨Q, G Q⟩ in these moments.
    """
    if not centred:
        return moments(sums[held_out], about=origin(sums[held_out]))
    others = _others(sums, held_out)
    count = reduce(add, (part.count for part in others))
    sum_x, sum_y = (reduce(add, (getattr(part, name) for part in others)) for name in ("sum_x", "sum_y"))
    means = (sum_x / count).cpu().numpy(), (sum_y / count).cpu().numpy()
    return moments(sums[held_out], about=means)


def _others(sums: FoldSums, held_out: int) -> list[Sums]:
    return [part for fold, part in enumerate(sums) if fold != held_out]
