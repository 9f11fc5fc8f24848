"""Products of channel rows: the one place where the statistics spend their time.

On the CPU a float32 product goes to oneDNN, the library that runs the layer's own forward; on processors without
Intel's name it is about twice as fast as the BLAS behind `torch.matmul`. Elsewhere, `torch.matmul`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from streamsparse.kernels.parallel import Addition
from streamsparse.kernels.pivots import Pivots, add_correction

SYMMETRIC_BLOCKS = 8
SMALLEST_BLOCK = 128
SMALLEST_PRODUCT = 64


@dataclass(frozen=True, eq=False)
class Factor:
    """One side of a product.

    Attributes:
        values: (groups, channels, positions), dense; of channels with a pivot, what they differ from it.
        pivots: see `kernels.pivots`.
        sums: of `values` over positions, (groups·channels,), called only if a side has pivots.
    """

    values: Float[Tensor, "groups channels positions"]
    pivots: Pivots | None
    sums: Callable[[], Float64[Tensor, " all_channels"]]


def add_product(total: Float64[Tensor, "groups channels outputs"], first: Factor, second: Factor) -> None:
    """total += Σ x yᵀ over positions, group by group, in place; of a factor with itself the upper triangle.

    Below the diagonal of such a sum only blocks on it are filled; `mirrored` completes it.
    """
    for addition in product_additions(total, first, second):
        addition()


def product_additions(
    total: Float64[Tensor, "groups channels outputs"], first: Factor, second: Factor
) -> Iterator[Addition]:
    """`add_product` in two halves: the products are formed when asked for, and added when called."""
    a, b = first.values, second.values
    if a.shape[1] == 1 == b.shape[1]:
        wide = torch.promote_types(a.dtype, torch.float32)
        yield partial(total.add_, (a.to(wide) * b.to(wide)).sum(-1, keepdim=True))
    elif a.shape[0] > 1 and a.shape[1] < SMALLEST_PRODUCT:
        yield partial(total.add_, _batched_product(a, b.transpose(1, 2)))
    else:
        for group, rows, others in zip(total, a, b, strict=True):
            if first is second:
                yield from _symmetric_additions(group, rows)
            else:
                yield partial(group.add_, row_product(rows, others))
    if first.pivots is not None or second.pivots is not None:
        empty = total.new_zeros(0)
        sums = (
            empty if second.pivots is None else first.sums(),
            empty if first.pivots is None else second.sums(),
        )
        yield partial(add_correction, total, (first.pivots, second.pivots), sums, a.shape[-1])


def _symmetric_additions(
    total: Float64[Tensor, "channels channels"], rows: Float[Tensor, "channels positions"]
) -> Iterator[Addition]:
    """Half the products and half the traffic to a large total; a block is worth the threads that it wakes."""
    channels = rows.shape[0]
    blocks = max(1, min(SYMMETRIC_BLOCKS, channels // (SMALLEST_BLOCK * torch.get_num_threads())))
    size = -(-channels // blocks)
    for start in range(0, channels, size):
        yield partial(
            total[start : start + size, start:].add_, row_product(rows[start : start + size], rows[start:])
        )


def row_product(
    first: Float[Tensor, "channels positions"], second: Float[Tensor, "outputs positions"]
) -> Float[Tensor, "channels outputs"]:
    """first · secondᵀ, in the dtype of the factors, of bfloat16 ones in float32; both contiguous for speed."""
    if first.dtype == torch.bfloat16:
        if first.device.type == "cuda":
            return torch.mm(first, second.T, out_dtype=torch.float32)
        return row_product(first.float(), second.float())
    if _onednn_serves(first, second):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(first, second, None, "none", [], "")
        return product
    return first @ second.T


def mirrored(total: Float64[Tensor, "... channels channels"]) -> Float64[Tensor, "... channels channels"]:
    """The symmetric matrix with this upper triangle, as a new tensor."""
    return total.triu() + total.triu(1).transpose(-1, -2)


def _batched_product(first: Tensor, second: Tensor) -> Tensor:
    if first.dtype == torch.bfloat16:
        if first.device.type == "cuda":
            return torch.bmm(first, second, out_dtype=torch.float32)
        return torch.bmm(first.float(), second.float())
    return torch.bmm(first, second)


def _onednn_serves(first: Tensor, second: Tensor) -> bool:
    """oneDNN's fast path: dense float32 on the CPU (strided factors fall to its slow reference)."""
    return (
        first.device.type == "cpu"
        and first.dtype == second.dtype == torch.float32
        and first.is_contiguous()
        and second.is_contiguous()
        and first.numel() > 0
        and second.numel() > 0
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
