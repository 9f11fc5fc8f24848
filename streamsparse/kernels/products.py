"""Products of channel rows: the one place where the statistics spend their time.

On the CPU a float32 product goes to oneDNN, the library that runs the layer's own forward; on processors without
Intel's name it is about twice as fast as the BLAS behind `torch.matmul`. Elsewhere, `torch.matmul`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SYMMETRIC_BLOCKS = 8
SMALLEST_BLOCK = 64


def row_product(
    first: Float[Tensor, "channels positions"], second: Float[Tensor, "outputs positions"]
) -> Float[Tensor, "channels outputs"]:
    """first · secondᵀ, in the dtype of the factors; both contiguous for speed."""
    if _onednn_serves(first, second):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(first, second, None, "none", [], "")
        return product
    return first @ second.T


def symmetric_product(rows: Float[Tensor, "channels positions"]) -> Float[Tensor, "channels channels"]:
    """rows · rowsᵀ, of which little more than one triangle is computed."""
    channels = rows.shape[0]
    blocks = min(SYMMETRIC_BLOCKS, channels // SMALLEST_BLOCK)
    if blocks < 2:
        return row_product(rows, rows)
    result = rows.new_empty(channels, channels)
    size = -(-channels // blocks)
    for start in range(0, channels, size):
        here = slice(start, start + size)
        result[here, start:] = row_product(rows[here], rows[start:])
        result[start:, here] = result[here, start:].T
    return result


def grouped_product(
    first: Float[Tensor, "groups channels positions"], second: Float[Tensor, "groups outputs positions"]
) -> Float[Tensor, "groups channels outputs"]:
    """first · secondᵀ group by group; symmetric products are recognised by identity."""
    if first.shape[1] == 1 == second.shape[1]:
        return (first * second).sum(-1, keepdim=True)
    if first.shape[0] > 1 and first.shape[1] < SMALLEST_BLOCK:
        return torch.bmm(first, second.transpose(1, 2))
    if first is second:
        products = [symmetric_product(group) for group in first]
    else:
        products = [row_product(*groups) for groups in zip(first, second, strict=True)]
    return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)


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
