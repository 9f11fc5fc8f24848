"""Precision of the products inside one block of images, by name; all sums of blocks are float64.

    name       factors                         products and their sums within a block
    float64    as they are                     float64
    float32    as they are, in float32         float32
    tf32       rounded to 11 significant bits  float32; on CUDA by the tensor cores
    bfloat16   rounded to 8 significant bits   float32; on CUDA by the tensor cores

Factors are rounded here, once, and every sum of a layer is of the rounded values. So the hardware has nothing left
to round but its sums, a Gram is positive semidefinite up to the round-off of float32 in every precision, and
results differ between devices by that round-off only. On the CPU, which multiplies in float32, tf32 and bfloat16
are no faster: they tell what a GPU would find.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamsparse.errors import StatisticsError

_TF32_DROPPED_BITS = 13


@dataclass(frozen=True)
class Precision:
    """How products are formed.

    Attributes:
        name: as above.
        computed: dtype of the products, and of sums within a block.
        stored: dtype that the factors are held in.
    """

    name: str
    computed: torch.dtype
    stored: torch.dtype

    def rounded(self, values: Tensor) -> Tensor:
        """`values`, of dtype `computed`, as factors: rounded to nearest, ties to even; never in place."""
        if self.name != "tf32":
            return values.to(self.stored)
        if not bool(torch.isfinite(values).all()):
            return values  # for the caller to refuse
        bits = values.contiguous().view(torch.int32)
        rounded = (bits >> _TF32_DROPPED_BITS).bitwise_and_(1).add_(bits).add_((1 << (_TF32_DROPPED_BITS - 1)) - 1)
        return rounded.bitwise_and_(-(1 << _TF32_DROPPED_BITS)).view(torch.float32)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Let float32 products be those of this precision, whatever the process asked for; restored after."""
        if device.type not in ("cpu", "cuda"):
            yield
            return
        backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
        before = backend.matmul.fp32_precision
        backend.matmul.fp32_precision = "tf32" if self.name == "tf32" and device.type == "cuda" else "ieee"
        try:
            yield
        finally:
            backend.matmul.fp32_precision = before


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float64", torch.float64, torch.float64),
        Precision("float32", torch.float32, torch.float32),
        Precision("tf32", torch.float32, torch.float32),
        Precision("bfloat16", torch.float32, torch.bfloat16),
    )
}

ProductDtype = str | torch.dtype
"""A name of `PRECISIONS`, or a torch dtype that has one."""


def precision_of(product_dtype: ProductDtype) -> Precision:
    """The precision of this name.

    Raises:
        StatisticsError: it is not offered.
    """
    found = PRECISIONS.get(str(product_dtype).removeprefix("torch."))
    if found is None:
        raise StatisticsError(
            "Products of this precision are not offered.",
            expected=", ".join(PRECISIONS),
            got=product_dtype,
            remedy="use float32; float64 is slower and rarely needed, tf32 and bfloat16 are for GPUs",
        )
    return found
