"""Statistics of a layer's regression without building its patches: empty, update, merge, finish.

The state holds the sums of shifted products (see `kernels.shift_terms`) instead of the Gram: 29 blocks of
channels × channels for a padded 3×3 convolution where the Gram has 81. `finish` adds them up into `Sums`, once.
The cross term is taken tap by tap, Σ x(stride·o + dilation·t − before)·y(o)ᵀ.

    images   (images, channels, height, width)  ->  rows (channels, height, width, images), dense
    term     rows[:, first]·rows[:, second]ᵀ    ->  (channels, channels), summed in float64

Images come innermost, so that every window of positions is copied in long runs and a strided choice of images
(a fold) costs nothing more than its share of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels.gram_plan import GramPlan, gram_plan
from streamsparse.kernels.products import grouped_product
from streamsparse.kernels.shift_terms import as_slice
from streamsparse.kernels.statistics import Sums, field_shapes
from streamsparse.types import LayerGeometry

BLOCK_BYTES = 128 * 2**20
_PAD_MODES = {"reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@dataclass(frozen=True, eq=False)
class ShiftSums:
    """Raw additive sums of one layer, float64 throughout; `columns` are (channel, tap), channel-major.

    Attributes:
        products: of the layer's terms, (terms, groups, width, width); width is the channels per group, or the
            columns for a layer whose plan says "patches".
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


def empty_shifts(geometry: LayerGeometry, device: torch.device | str = "cpu") -> ShiftSums:
    """The sums over no patches."""
    shapes = shift_field_shapes(geometry)
    zeros = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
    return ShiftSums(**zeros)


def update_shifts(
    sums: ShiftSums,
    inputs: Tensor,
    outputs: Tensor,
    geometry: LayerGeometry,
    *,
    product_dtype: torch.dtype = torch.float32,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add a batch of images to `sums`, in place.

    Args:
        sums: changed in place.
        inputs: the layer's input, (images, *geometry.input_shape), any floating dtype, any strides.
        outputs: the layer's output, (images, *geometry.output_shape).
        geometry: of the layer.
        product_dtype: of the products inside one block; their sums are float64. With float32 the Gram agrees
            with that of float64 patches to a relative 1e-6 of its norm.
        block_bytes: bound on the copies held at once beside one product (at least one image).

    Raises:
        NonFiniteError: the batch holds NaN or infinity; `sums` is then worthless.
        StatisticsError: shapes that do not fit the layer.
    """
    _check(inputs, outputs, geometry)
    plan = gram_plan(geometry)
    step = max(1, block_bytes // (plan.numbers_per_image * product_dtype.itemsize))
    for first in range(0, inputs.shape[0], step):
        block = slice(first, first + step)
        rows = _padded_rows(inputs[block].to(product_dtype), geometry)  # (channels, height, width, images)
        targets = _rows(outputs[block].to(product_dtype), geometry.out_channels, geometry)
        _add_responses(sums, targets, geometry)
        if plan.method == "patches":
            _add_patches(sums, rows, targets, geometry, plan)
        else:
            _add_products(sums, rows, geometry, plan)
            _add_cross(sums, rows, targets, geometry, plan)
        _check_finite(sums, geometry)


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
        return Sums(gram=sums.products.sum(0), **rest)
    width, taps = geometry.in_channels // geometry.groups, geometry.taps
    gram = sums.products.new_zeros(geometry.groups, width, taps, width, taps)
    for (tap, partner), used in plan.terms.sums.items():
        block = sums.products[used[0]].clone()  # (groups, width, width)
        for number in used[1:]:
            block += sums.products[number]
        gram[:, :, tap, :, partner] = block
        gram[:, :, partner, :, tap] = block.transpose(1, 2)
    return Sums(gram=gram.view(geometry.groups, width * taps, width * taps), **rest)


def _rows(images: Tensor, channels: int, geometry: LayerGeometry) -> Tensor:
    """(images, ...) -> (channels, height, width, images), dense."""
    count = images.shape[0]
    if geometry.kind == "linear":
        positions = images.reshape(count, -1, channels).permute(2, 1, 0).contiguous()
        return positions.unsqueeze(1)
    height = images.shape[2] if images.dim() == 4 else 1
    flat = images.reshape(count, -1).t().contiguous()
    return flat.view(channels, height, images.shape[-1], count)


def _padded_rows(images: Tensor, geometry: LayerGeometry) -> Tensor:
    """The same, with any padding but zeros made explicit."""
    if geometry.padding_mode != "zeros" and geometry.kind != "linear":
        amounts = [side for pair in reversed(geometry.padding) for side in pair]
        images = F.pad(images, amounts, mode=_PAD_MODES[geometry.padding_mode])
    return _rows(images, geometry.in_channels, geometry)


def _window(rows: Tensor, height: slice, width: slice, groups: int) -> Tensor:
    """A dense copy (a view where it is the whole) of a window: (groups, channels, positions·images)."""
    return rows[:, height, width].reshape(groups, rows.shape[0] // groups, -1).contiguous()


def _add_products(sums: ShiftSums, rows: Tensor, geometry: LayerGeometry, plan: GramPlan) -> None:
    for number, term in enumerate(plan.terms.terms):
        first = _window(rows, term.rows.first, term.columns.first, geometry.groups)
        second = first if term.unshifted else _window(rows, term.rows.second, term.columns.second, geometry.groups)
        sums.products[number] += grouped_product(first, second)


def _add_cross(sums: ShiftSums, rows: Tensor, targets: Tensor, geometry: LayerGeometry, plan: GramPlan) -> None:
    groups, width = geometry.groups, geometry.in_channels // geometry.groups
    cross = sums.cross.view(groups, width, geometry.taps, -1)
    sum_x = sums.sum_x.view(groups, width, geometry.taps)
    totals = rows.sum(-1, dtype=torch.float64)  # (channels, height, width)
    for tap in range(geometry.taps):
        y, x = divmod(tap, plan.columns.taps)
        height, width_run = plan.rows.output_run(y, y), plan.columns.output_run(x, x)
        if not (height and width_run):
            continue  # the tap sees only padding
        seen = as_slice(plan.rows.inputs_seen(y, height)), as_slice(plan.columns.inputs_seen(x, width_run))
        partner = _window(targets, as_slice(height), as_slice(width_run), groups)
        cross[:, :, tap] += grouped_product(_window(rows, *seen, groups), partner)
        sum_x[:, :, tap] += totals[:, seen[0], seen[1]].sum((1, 2)).view(groups, width)


def _add_patches(sums: ShiftSums, rows: Tensor, targets: Tensor, geometry: LayerGeometry, plan: GramPlan) -> None:
    groups, shape = geometry.groups, (plan.rows.outputs, plan.columns.outputs, rows.shape[-1])
    columns = rows.new_zeros(geometry.in_channels, geometry.taps, *shape)
    for tap in range(geometry.taps):
        y, x = divmod(tap, plan.columns.taps)
        height, width = plan.rows.output_run(y, y), plan.columns.output_run(x, x)
        if height and width:
            seen = as_slice(plan.rows.inputs_seen(y, height)), as_slice(plan.columns.inputs_seen(x, width))
            columns[:, tap, as_slice(height), as_slice(width)] = rows[:, seen[0], seen[1]]
    patches = columns.view(groups, geometry.columns, -1)  # (groups, columns, positions·images)
    sums.products[0] += grouped_product(patches, patches)
    sums.cross.add_(grouped_product(patches, targets.view(groups, geometry.out_channels // groups, -1)))
    sums.sum_x.add_(patches.sum(-1, dtype=torch.float64))


def _add_responses(sums: ShiftSums, targets: Tensor, geometry: LayerGeometry) -> None:
    flat = targets.view(geometry.groups, geometry.out_channels // geometry.groups, -1)
    sums.sum_y.add_(flat.sum(-1, dtype=torch.float64))
    sums.power.add_(torch.linalg.vector_norm(flat, dim=(1, 2), dtype=torch.float64).square())
    sums.count.add_(flat.shape[-1])


def _check_finite(sums: ShiftSums, geometry: LayerGeometry) -> None:
    if not bool(torch.isfinite(sums.sum_x).all() and torch.isfinite(sums.power).all()):
        raise NonFiniteError(
            f"The activations of layer '{geometry.layer}' are not all finite.",
            expected="finite values",
            got="NaN or infinity",
            where=geometry.layer,
            remedy="check the model and its inputs; a chunk that was lost also reads as NaN",
        )


def _check(inputs: Tensor, outputs: Tensor, geometry: LayerGeometry) -> None:
    for side, tensor, shape in (
        ("input", inputs, geometry.input_shape),
        ("output", outputs, geometry.output_shape),
    ):
        if tuple(tensor.shape[1:]) != shape:
            raise StatisticsError(
                f"The {side} activations of layer '{geometry.layer}' have another shape than the layer.",
                expected=f"(images, {', '.join(map(str, shape))})",
                got=tuple(tensor.shape),
                where=geometry.layer,
                remedy="capture the run again with the model it belongs to",
            )
    if inputs.shape[0] != outputs.shape[0]:
        raise StatisticsError(
            f"Layer '{geometry.layer}' has another number of input images than output images.",
            expected=inputs.shape[0],
            got=outputs.shape[0],
            where=geometry.layer,
        )
