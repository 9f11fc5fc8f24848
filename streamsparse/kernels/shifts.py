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
from streamsparse.kernels.pivots import add_pivots, subtract_pivots
from streamsparse.kernels.precision import Precision, ProductDtype, precision_of
from streamsparse.kernels.products import Factor, add_product
from streamsparse.kernels.shift_sums import ShiftSums, shift_bytes
from streamsparse.kernels.shift_terms import Term, as_slice
from streamsparse.kernels.windows import Rows, at, check_shape, dense, images_per_block, not_finite, padded, rows_of
from streamsparse.types import LayerGeometry

BLOCK_BYTES = 128 * 2**20


def update_shifts(
    sums: ShiftSums,
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    *,
    product_dtype: ProductDtype = "float32",
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add a batch of images to `sums`, in place.

    Args:
        sums: changed in place.
        inputs: the layer's input, (images, *geometry.input_shape), any floating dtype, any strides.
        outputs: the responses, (images, *geometry.output_shape); None if they are the layer's own linear output,
            whose sums `own_responses` derives from the Gram at no cost.
        geometry: of the layer.
        product_dtype: of the products inside one block, see `kernels.precision`; their sums are float64. With
            float32 the Gram agrees with that of float64 patches to a relative 1e-6 of its norm.
        block_bytes: bound on the copies held at once beside one product (at least one image).

    Raises:
        NonFiniteError: the batch holds NaN or infinity; `sums` is then worthless.
        StatisticsError: shapes that do not fit the layer, a precision that is not offered.
    """
    _check(inputs, outputs, geometry)
    plan, precision = gram_plan(geometry), precision_of(product_dtype)
    step = images_per_block(plan.numbers_per_image, shift_bytes(geometry), precision.computed, block_bytes)
    with precision.on(inputs.device):
        for first in range(0, inputs.shape[0], step):
            block = slice(first, first + step)
            responses = None if outputs is None else outputs[block]
            _add_block(sums, inputs[block], responses, geometry, plan, precision)
            _check_finite(sums, geometry)


def _add_block(
    sums: ShiftSums,
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    plan: GramPlan,
    precision: Precision,
) -> None:
    targets = None
    if outputs is not None:
        targets = rows_of(outputs, geometry.out_channels, geometry, plan, precision)
        _add_responses(sums, targets, geometry)
    if plan.method == "patches":
        _add_patches(sums, inputs, targets, geometry, plan, precision)
    else:
        rows = rows_of(padded(inputs, geometry), geometry.in_channels, geometry, plan, precision)
        _add_products(sums, rows, geometry, plan)
        _add_cross(sums, rows, targets, geometry, plan)
    sums.count.add_(inputs.shape[0] * geometry.patches_per_image)


def _add_products(sums: ShiftSums, rows: Rows, geometry: LayerGeometry, plan: GramPlan) -> None:
    for total, term in zip(sums.products, plan.terms.terms, strict=True):
        _add_term(total, term, rows, geometry.groups, plan)


def _add_term(total: Tensor, term: Term, rows: Rows, groups: int, plan: GramPlan) -> None:
    """A function of its own, so that its windows are freed before the next term's are made."""
    first = second = rows.window(term.rows.first, term.columns.first, groups, plan)
    if not term.unshifted:
        second = rows.window(term.rows.second, term.columns.second, groups, plan)
    add_product(total, first, second)


def _add_cross(sums: ShiftSums, rows: Rows, targets: Rows | None, geometry: LayerGeometry, plan: GramPlan) -> None:
    groups, width = geometry.groups, geometry.in_channels // geometry.groups
    cross = sums.cross.view(groups, width, geometry.taps, -1)
    sum_x = sums.sum_x.view(groups, width, geometry.taps)
    for tap in range(geometry.taps):
        y, x = divmod(tap, plan.columns.taps)
        height, width_run = plan.rows.output_run(y, y), plan.columns.output_run(x, x)
        if not (height and width_run):
            continue  # the tap sees only padding
        seen = as_slice(plan.rows.inputs_seen(y, height)), as_slice(plan.columns.inputs_seen(x, width_run))
        if targets is not None:
            first = rows.window(*seen, groups, plan)
            add_product(
                cross[:, :, tap], first, targets.window(as_slice(height), as_slice(width_run), groups, plan)
            )
        sum_x[:, :, tap] += rows.sums(*seen).view(groups, width)


def _add_patches(
    sums: ShiftSums,
    inputs: Tensor,
    targets: Rows | None,
    geometry: LayerGeometry,
    plan: GramPlan,
    precision: Precision,
) -> None:
    dense_inputs = dense(padded(inputs, geometry).to(precision.computed), geometry.in_channels, geometry, plan)
    patches = _unfolded(dense_inputs, geometry, plan).view(geometry.groups * geometry.columns, -1)
    pivots = subtract_pivots(patches)
    values = precision.rounded(patches).view(geometry.groups, geometry.columns, -1)
    differences = values.flatten(0, 1).sum(-1, dtype=precision.computed).double()
    factor = Factor(values, pivots, lambda: differences)
    add_product(sums.products[0], factor, factor)
    total = differences.clone()
    add_pivots(total, pivots, values.shape[-1])
    sums.sum_x.add_(total.view_as(sums.sum_x))
    if targets is not None:
        everything = slice(None)
        add_product(sums.cross, factor, targets.window(everything, everything, geometry.groups, plan))


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


def _add_responses(sums: ShiftSums, targets: Rows, geometry: LayerGeometry) -> None:
    flat = targets.values.flatten(1)
    total = flat.sum(-1, dtype=targets.computed).double()  # torch sums pairwise: 1e-7 in float32
    norms = torch.linalg.vector_norm(targets.values.flatten(2), dim=-1, dtype=targets.computed)
    power = norms.double().square().sum(-1)  # of short runs, so that float32 suffices
    if targets.pivots is not None:  # Σy² = Σ(y−q)² + q·(Σ(y−q) + Σy)
        channels = targets.pivots.channels
        differences = total[channels]
        add_pivots(total, targets.pivots, flat.shape[1])
        power[channels] += targets.pivots.values * (differences + total[channels])
    sums.power.add_(power.view(geometry.groups, -1).sum(-1))
    sums.sum_y.add_(total.view(geometry.groups, -1))


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
