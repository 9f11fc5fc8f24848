"""Adding images to the statistics of a layer without building their patches.

The products are those of `kernels.shift_terms`, their sums live in `kernels.shift_sums`. The cross term is taken
tap by tap, Σ x(stride·o + dilation·t − before)·y(o)ᵀ.

    images   (images, channels, height, width)  ->  rows (channels, height, width, images), dense
    term     rows[first]·rows[second]ᵀ          ->  (channels, channels), summed in float64

On small maps images come innermost, so that every window is copied in long runs. The inputs may be any strided
choice of a batch (a fold): the one copy into rows absorbs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamsparse.errors import StatisticsError
from streamsparse.kernels.gram_plan import GramPlan, gram_plan
from streamsparse.kernels.products import add_grouped_product
from streamsparse.kernels.shift_sums import ShiftSums, shift_bytes
from streamsparse.kernels.shift_terms import Term, as_slice
from streamsparse.kernels.windows import at, check_shape, images_per_block, not_finite, padded, rows_of, window
from streamsparse.types import LayerGeometry

BLOCK_BYTES = 128 * 2**20


def update_shifts(
    sums: ShiftSums,
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    *,
    product_dtype: torch.dtype = torch.float32,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add a batch of images to `sums`, in place.

    Args:
        sums: changed in place.
        inputs: the layer's input, (images, *geometry.input_shape), any floating dtype, any strides.
        outputs: the responses, (images, *geometry.output_shape); None if they are the layer's own linear output,
            whose sums `own_responses` derives from the Gram at no cost.
        geometry: of the layer.
        product_dtype: of the products inside one block; their sums are float64. With float32 the Gram agrees
            with that of float64 patches to a relative 1e-6 of its norm.
        block_bytes: bound on the copies held at once beside one product (at least one image).

    Raises:
        NonFiniteError: the batch holds NaN or infinity; `sums` is then worthless.
        StatisticsError: shapes that do not fit the layer.
    """
    _check(inputs, outputs, geometry)
    if product_dtype not in (torch.float32, torch.float64):
        raise StatisticsError(
            "Products of this precision are not offered.",
            expected="torch.float32 or torch.float64",
            got=product_dtype,
            where=geometry.layer,
            remedy="use float32; on CUDA, torch.backends.cuda.matmul decides whether its products use TF32",
        )
    plan = gram_plan(geometry)
    step = images_per_block(plan.numbers_per_image, shift_bytes(geometry), product_dtype, block_bytes)
    for first in range(0, inputs.shape[0], step):
        block = slice(first, first + step)
        rows = rows_of(padded(inputs[block].to(product_dtype), geometry), geometry.in_channels, geometry, plan)
        targets = None
        if outputs is not None:
            targets = rows_of(outputs[block].to(product_dtype), geometry.out_channels, geometry, plan)
            _add_responses(sums, targets, geometry)
        if plan.method == "patches":
            _add_patches(sums, rows, targets, geometry, plan)
        else:
            _add_products(sums, rows, geometry, plan)
            _add_cross(sums, rows, targets, geometry, plan)
        sums.count.add_(inputs[block].shape[0] * geometry.patches_per_image)
        _check_finite(sums, geometry)


def _add_products(sums: ShiftSums, rows: Tensor, geometry: LayerGeometry, plan: GramPlan) -> None:
    for total, term in zip(sums.products, plan.terms.terms, strict=True):
        _add_term(total, term, rows, geometry.groups, plan)


def _add_term(total: Tensor, term: Term, rows: Tensor, groups: int, plan: GramPlan) -> None:
    """A function of its own, so that its windows are freed before the next term's are made."""
    first = second = window(rows, term.rows.first, term.columns.first, groups, plan)
    if not term.unshifted:
        second = window(rows, term.rows.second, term.columns.second, groups, plan)
    add_grouped_product(total, first, second)


def _add_cross(
    sums: ShiftSums, rows: Tensor, targets: Tensor | None, geometry: LayerGeometry, plan: GramPlan
) -> None:
    groups, width = geometry.groups, geometry.in_channels // geometry.groups
    cross = sums.cross.view(groups, width, geometry.taps, -1)
    sum_x = sums.sum_x.view(groups, width, geometry.taps)
    totals = rows.sum(3 if plan.images_innermost else 1).double()  # (channels, height, width)
    for tap in range(geometry.taps):
        y, x = divmod(tap, plan.columns.taps)
        height, width_run = plan.rows.output_run(y, y), plan.columns.output_run(x, x)
        if not (height and width_run):
            continue  # the tap sees only padding
        seen = as_slice(plan.rows.inputs_seen(y, height)), as_slice(plan.columns.inputs_seen(x, width_run))
        if targets is not None:
            add_grouped_product(
                cross[:, :, tap],
                window(rows, *seen, groups, plan),
                window(targets, as_slice(height), as_slice(width_run), groups, plan),
            )
        sum_x[:, :, tap] += totals[:, seen[0], seen[1]].sum((1, 2)).view(groups, width)


def _add_patches(
    sums: ShiftSums, rows: Tensor, targets: Tensor | None, geometry: LayerGeometry, plan: GramPlan
) -> None:
    patches = _unfolded(rows, geometry, plan).view(geometry.groups, geometry.columns, -1)
    add_grouped_product(sums.products[0], patches, patches)
    sums.sum_x.add_(patches.sum(-1).double())
    if targets is not None:
        grouped = targets.view(geometry.groups, geometry.out_channels // geometry.groups, -1)
        add_grouped_product(sums.cross, patches, grouped)


def _unfolded(rows: Tensor, geometry: LayerGeometry, plan: GramPlan) -> Tensor:
    """Patches of one block, (channels, taps, and the dimensions of an output in the layout of `rows`)."""
    images = rows.shape[3 if plan.images_innermost else 1]
    output = (plan.rows.outputs, plan.columns.outputs)
    shape = (*output, images) if plan.images_innermost else (images, *output)
    columns = rows.new_zeros(geometry.in_channels, geometry.taps, *shape)
    for tap in range(geometry.taps):
        y, x = divmod(tap, plan.columns.taps)
        height, width = plan.rows.output_run(y, y), plan.columns.output_run(x, x)
        if height and width:
            seen = as_slice(plan.rows.inputs_seen(y, height)), as_slice(plan.columns.inputs_seen(x, width))
            at(columns[:, tap], as_slice(height), as_slice(width), plan).copy_(at(rows, *seen, plan))
    return columns


def _add_responses(sums: ShiftSums, targets: Tensor, geometry: LayerGeometry) -> None:
    groups, width = geometry.groups, geometry.out_channels // geometry.groups
    sums.sum_y.add_(targets.view(groups, width, -1).sum(-1).double())  # torch sums pairwise: 1e-7 in float32
    norms = torch.linalg.vector_norm(targets.flatten(2), dim=-1)  # short runs, so that float32 suffices
    sums.power.add_(norms.double().square().view(groups, -1).sum(-1))


def _check_finite(sums: ShiftSums, geometry: LayerGeometry) -> None:
    if not bool(torch.isfinite(sums.sum_x).all() and torch.isfinite(sums.power).all()):
        raise not_finite(geometry)


def _check(inputs: Tensor, outputs: Tensor | None, geometry: LayerGeometry) -> None:
    check_shape("input", inputs, geometry.input_shape, geometry)
    if outputs is None:
        return
    check_shape("output", outputs, geometry.output_shape, geometry)
    if inputs.shape[0] != outputs.shape[0]:
        raise StatisticsError(
            f"Layer '{geometry.layer}' has another number of input images than output images.",
            expected=inputs.shape[0],
            got=outputs.shape[0],
            where=geometry.layer,
            remedy="give the outputs of the same images",
        )
