"""Batches of activations as dense rows of channels, and windows of them.

    images   (images, channels, height, width)  ->  rows (channels, height, width, images), or
                                                         (channels, images, height, width), as planned

On small maps images come innermost, so that every window is copied in long runs. The images may be any strided
choice of a batch (a fold, a range of channels): the one copy into rows absorbs it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels.gram_plan import GramPlan
from streamsparse.types import LayerGeometry

CACHE_BYTES = 24 * 2**20


def images_per_block(numbers_per_image: int, state_bytes: int, product_dtype: torch.dtype, block_bytes: int) -> int:
    """As many as fit a processor's cache, unless adding to a larger state then costs more than the products."""
    wanted = min(block_bytes, max(CACHE_BYTES, 2 * state_bytes))
    return max(1, wanted // (numbers_per_image * product_dtype.itemsize))


def rows_of(images: Tensor, channels: int, geometry: LayerGeometry, plan: GramPlan) -> Tensor:
    """(images, ...) -> dense (channels, height, width, images) or (channels, images, height, width), as planned."""
    count = images.shape[0]
    if geometry.kind == "linear":
        return images.reshape(-1, channels).t().contiguous().view(channels, count, 1, -1)
    height = images.shape[2] if images.dim() == 4 else 1
    if plan.images_innermost:
        flat = images.reshape(count, -1).t().contiguous()
        return flat.view(channels, height, images.shape[-1], count)
    return images.transpose(0, 1).contiguous().view(channels, count, height, images.shape[-1])


def padded(images: Tensor, geometry: LayerGeometry) -> Tensor:
    """With any padding but zeros made explicit."""
    if geometry.padding_mode == "zeros" or geometry.kind == "linear":
        return images
    amounts = [side for pair in reversed(geometry.padding) for side in pair]
    return F.pad(images, amounts, mode=geometry.padding_mode)


def at(rows: Tensor, height: slice, width: slice, plan: GramPlan) -> Tensor:
    """The window of `rows`, as a view."""
    return rows[:, height, width] if plan.images_innermost else rows[:, :, height, width]


def window(rows: Tensor, height: slice, width: slice, groups: int, plan: GramPlan) -> Tensor:
    """A dense window (a copy unless it is the whole): (groups, channels, positions·images)."""
    return at(rows, height, width, plan).reshape(groups, rows.shape[0] // groups, -1).contiguous()


def not_finite(geometry: LayerGeometry) -> NonFiniteError:
    """What to raise for a batch that holds NaN or infinity."""
    return NonFiniteError(
        f"The activations of layer '{geometry.layer}' are not all finite.",
        expected="finite values",
        got="NaN or infinity",
        where=geometry.layer,
        remedy="check the model and its inputs; a chunk that was lost also reads as NaN",
    )


def check_shape(side: str, tensor: Tensor, shape: tuple[int, ...], geometry: LayerGeometry) -> None:
    """Refuse images that are not the layer's.

    Raises:
        StatisticsError: the shape of one image is not `shape`.
    """
    if tuple(tensor.shape[1:]) != shape:
        raise StatisticsError(
            f"The {side} activations of layer '{geometry.layer}' have another shape than the layer.",
            expected=f"(images, {', '.join(map(str, shape))})",
            got=tuple(tensor.shape),
            where=geometry.layer,
            remedy="capture the run again with the model it belongs to",
        )
