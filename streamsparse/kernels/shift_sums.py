"""Sums of shifted products, and the Gram they make: empty, merge, finish (`kernels.shifts` updates).

The state holds the products of `kernels.shift_terms` instead of the Gram: 29 blocks of channels × channels for a
padded 3×3 convolution where the Gram has 81. `finish` adds them up into `Sums`, once per run. Like `Sums`, they
are raw and additive: chunks, folds, shards and sites merge by addition in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from streamsparse.errors import StatisticsError
from streamsparse.kernels.gram_plan import gram_plan
from streamsparse.kernels.products import mirrored
from streamsparse.kernels.statistics import Sums, field_shapes
from streamsparse.types import LayerGeometry


@dataclass(frozen=True, eq=False)
class ShiftSums:
    """Raw additive sums of one layer, float64 throughout; `columns` are (channel, tap), channel-major.

    Attributes:
        products: of the layer's terms, (terms, groups, width, width), of symmetric ones the upper triangle;
            width is the channels per group, or the columns for a layer whose plan says "patches".
        cross: Σ x yᵀ, (groups, columns, outputs).
        sum_x: Σ x, (groups, columns).
        sum_y: Σ y, (groups, outputs).
        power: Σ ‖y‖² per group, (groups,).
        count: number of patches, (1,).
    """

    products: Float64[Tensor, "terms groups width width"]
    cross: Float64[Tensor, "groups columns outputs"]
    sum_x: Float64[Tensor, "groups columns"]
    sum_y: Float64[Tensor, "groups outputs"]
    power: Float64[Tensor, " groups"]
    count: Float64[Tensor, " 1"]

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, not copied."""
        return {name: getattr(self, name) for name in SHIFT_FIELDS}


SHIFT_FIELDS = ("products", "cross", "sum_x", "sum_y", "power", "count")


def shift_field_shapes(geometry: LayerGeometry) -> dict[str, tuple[int, ...]]:
    """Shape of every field of the layer's `ShiftSums`."""
    plan = gram_plan(geometry)
    width = geometry.columns if plan.method == "patches" else geometry.in_channels // geometry.groups
    shapes = field_shapes(geometry)
    del shapes["gram"]
    return {"products": (len(plan.terms.terms), geometry.groups, width, width), **shapes}


def shift_bytes(geometry: LayerGeometry) -> int:
    """Bytes that one `ShiftSums` of the layer occupies."""
    return sum(8 * prod(shape) for shape in shift_field_shapes(geometry).values())


def empty_shifts(geometry: LayerGeometry, device: torch.device | str = "cpu") -> ShiftSums:
    """The sums over no patches."""
    shapes = shift_field_shapes(geometry)
    zeros = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
    return ShiftSums(**zeros)


def merge_shifts(first: ShiftSums, second: ShiftSums) -> ShiftSums:
    """The sums over both sets of patches, as new tensors.

    Raises:
        StatisticsError: they belong to layers of different shapes.
    """
    if first.products.shape != second.products.shape or first.cross.shape != second.cross.shape:
        raise StatisticsError(
            "Statistics of differently shaped layers cannot be merged.",
            expected=f"products {tuple(first.products.shape)}, cross {tuple(first.cross.shape)}",
            got=f"products {tuple(second.products.shape)}, cross {tuple(second.cross.shape)}",
        )
    return ShiftSums(**{name: getattr(first, name) + getattr(second, name) for name in SHIFT_FIELDS})


def finish(sums: ShiftSums, geometry: LayerGeometry) -> Sums:
    """The Gram from the sums of shifted products; the other fields are shared, not copied."""
    plan = gram_plan(geometry)
    rest = {name: getattr(sums, name) for name in SHIFT_FIELDS if name != "products"}
    if plan.method == "patches" or geometry.taps == 1:
        return Sums(gram=mirrored(sums.products.sum(0)), **rest)
    width, taps = geometry.in_channels // geometry.groups, geometry.taps
    gram = sums.products.new_zeros(geometry.groups, width, taps, width, taps)
    for (tap, partner), used in plan.terms.sums.items():
        block = sums.products[list(used)].sum(0)  # (groups, width, width)
        if plan.terms.terms[used[0]].unshifted:  # the terms of one tap pair share their shift
            block = mirrored(block)
        gram[:, :, tap, :, partner] = block
        gram[:, :, partner, :, tap] = block.transpose(1, 2)
    return Sums(gram=gram.view(geometry.groups, width * taps, width * taps), **rest)


def own_responses(sums: Sums, weight: Float[Tensor, "outputs ..."], bias: Float[Tensor, " outputs"] | None) -> Sums:
    """The sums whose responses are the layer's own y = Q x + b, from those of its inputs alone.

    Σxyᵀ = G Qᵀ + (Σx) bᵀ, Σy = Q Σx + T b, Σ‖y‖² = tr(Q G Qᵀ) + 2 bᵀQ Σx + T‖b‖², all in float64.

    Args:
        sums: gram, sum_x and count are read.
        weight: of the layer, (outputs, channels per group, *kernel).
        bias: of the layer, or None.
    """
    groups = sums.gram.shape[0]
    weights = weight.to(sums.gram).reshape(groups, -1, sums.gram.shape[1])  # (groups, outputs, columns)
    offset = torch.zeros(weights.shape[:2]).to(sums.gram) if bias is None else bias.to(sums.gram).view(groups, -1)
    linear = sums.gram @ weights.transpose(1, 2)  # (groups, columns, outputs)
    mapped = (weights @ sums.sum_x.unsqueeze(-1)).squeeze(-1)  # (groups, outputs)
    power = (linear * weights.transpose(1, 2)).sum((1, 2)) + (offset * (2 * mapped + sums.count * offset)).sum(1)
    cross = linear + sums.sum_x.unsqueeze(-1) * offset.unsqueeze(1)
    return replace(sums, cross=cross, sum_y=mapped + sums.count * offset, power=power)
