"""Batches of activations as dense rows of channels, and windows of them.

    images   (images, channels, height, width)  ->  rows (channels, height, width, images), or
                                                         (channels, images, height, width), as planned

On small maps images come innermost, so that every window is copied in long runs. The images may be any strided
choice of a batch (a fold, a range of channels): the one copy into rows absorbs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels.gram_plan import GramPlan
from streamsparse.kernels.pivots import Pivots, add_pivots, subtract_pivots
from streamsparse.kernels.precision import Precision
from streamsparse.kernels.products import Factor
from streamsparse.types import LayerGeometry

CACHE_BYTES = 24 * 2**20


@dataclass(frozen=True, eq=False)
class Rows:
    """A block of images as factors of products.

    Attributes:
        values: dense, (channels, height, width, images) or (channels, images, height, width), as planned; of
            channels with a pivot, what they differ from it.
        pivots: see `kernels.pivots`.
        images: in the block.
        images_innermost: the layout.
    """

    values: Float[Tensor, "channels ..."]
    pivots: Pivots | None
    images: int
    images_innermost: bool

    @property
    def computed(self) -> torch.dtype:
        """In which sums over a block are formed."""
        return torch.promote_types(self.values.dtype, torch.float32)

    @cached_property
    def totals(self) -> Float64[Tensor, "channels height width"]:
        """Sums of `values` over the images."""
        return self.values.sum(3 if self.images_innermost else 1, dtype=self.computed).double()

    def window(self, height: slice, width: slice, groups: int, plan: GramPlan) -> Factor:
        """These positions of every image, dense (a copy unless it is the whole)."""
        values = at(self.values, height, width, plan).reshape(groups, len(self.values) // groups, -1).contiguous()
        return Factor(values, self.pivots, lambda: self.totals[:, height, width].sum((1, 2)))

    def sums(self, height: slice, width: slice) -> Float64[Tensor, " channels"]:
        """Of the channels themselves, with their pivots, over a window."""
        seen = self.totals[:, height, width]
        sums = seen.sum((1, 2))
        add_pivots(sums, self.pivots, seen[0].numel() * self.images)
        return sums


def rows_of(images: Tensor, channels: int, geometry: LayerGeometry, plan: GramPlan, precision: Precision) -> Rows:
    """Convert a block of a layer's inputs (padded, unless with zeros) or outputs."""
    values = dense(images.to(precision.computed), channels, geometry, plan)
    values, pivots = subtract_pivots(values, shared=values.data_ptr() == images.data_ptr())
    return Rows(precision.rounded(values), pivots, images.shape[0], plan.images_innermost)


def images_per_block(numbers_per_image: int, state_bytes: int, computed: torch.dtype, block_bytes: int) -> int:
    """As many as fit a processor's cache, unless adding to a larger state then costs more than the products."""
    wanted = min(block_bytes, max(CACHE_BYTES, 2 * state_bytes))
    return max(1, wanted // (numbers_per_image * computed.itemsize))


def dense(images: Tensor, channels: int, geometry: LayerGeometry, plan: GramPlan) -> Tensor:
    """(images, ...) -> dense (channels, height, width, images) or (channels, images, height, width), as planned."""
    count = images.shape[0]
    if geometry.kind == "linear":
        return transposed(images.reshape(-1, channels)).view(channels, count, 1, -1)
    height = images.shape[2] if images.dim() == 4 else 1
    if plan.images_innermost:
        return transposed(images.reshape(count, -1)).view(channels, height, images.shape[-1], count)
    return images.transpose(0, 1).contiguous().view(channels, count, height, images.shape[-1])


def transposed(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    """Dense; torch copies into a transpose by tiles, which `t().contiguous()` does not: 3x on 512×1000."""
    return matrix.new_empty(matrix.shape[1], matrix.shape[0]).copy_(matrix.t())


def padded(images: Tensor, geometry: LayerGeometry) -> Tensor:
    """With any padding but zeros made explicit."""
    if geometry.padding_mode == "zeros" or geometry.kind == "linear":
        return images
    amounts = [side for pair in reversed(geometry.padding) for side in pair]
    return F.pad(images, amounts, mode=geometry.padding_mode)


def at(rows: Tensor, height: slice, width: slice, plan: GramPlan) -> Tensor:
    """The window of `rows`, as a view."""
    return rows[:, height, width] if plan.images_innermost else rows[:, :, height, width]


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
