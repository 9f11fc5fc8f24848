"""Adding images to the statistics of a layer without building their patches.

The products are those of `kernels.shift_terms`, their sums live in `kernels.shift_sums`. The cross term is taken
tap by tap, Σ x(stride·o + dilation·t − before)·y(o)ᵀ.

    images   (images, channels, height, width)  ->  rows (channels, height, width, images), dense
    term     rows[first]·rows[second]ᵀ          ->  (channels, channels), summed in float64

Where one product is the Gram (`kernels.single_product`), the threads of torch take a block of images each;
elsewhere they share out the products of every block (`kernels.parallel`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from streamsparse.errors import StatisticsError
from streamsparse.kernels.gram_plan import GramPlan, Window, gram_plan
from streamsparse.kernels.parallel import job_threads, run_in_turns, run_jobs
from streamsparse.kernels.precision import Precision, ProductDtype, precision_of
from streamsparse.kernels.products import add_product
from streamsparse.kernels.shift_sums import ShiftSums, shift_bytes
from streamsparse.kernels.shift_terms import Term
from streamsparse.kernels.single_product import response_additions, single_additions
from streamsparse.kernels.windows import Rows, check_shape, images_per_block, not_finite, padded, rows_of
from streamsparse.types import LayerGeometry

BLOCK_BYTES = 128 * 2**20
LEAST_POSITIONS = 512  # of a block, to be worth a thread of its own


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
        block_bytes: bound on the copies that all threads hold at once beside one product each (at least one image
            per block). Each thread of torch has its own windows or its own block, so blocks are of fewer images.

    Raises:
        NonFiniteError: the batch holds NaN or infinity; `sums` is then worthless.
        StatisticsError: shapes that do not fit the layer, a precision that is not offered.
    """
    _check(inputs, outputs, geometry)
    plan, precision = gram_plan(geometry), precision_of(product_dtype)
    update = _update_singly if plan.single else _update_by_terms
    with precision.on(inputs.device):
        update(sums, inputs, outputs, geometry, plan, precision, block_bytes)
    sums.count.add_(inputs.shape[0] * geometry.patches_per_image)
    if not bool(torch.isfinite(sums.sum_x).all() and torch.isfinite(sums.power).all()):
        raise not_finite(geometry)


def _update_singly(
    sums: ShiftSums,
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    plan: GramPlan,
    precision: Precision,
    block_bytes: int,
) -> None:
    """One product with itself per block: threads take a block each."""
    threads = job_threads(inputs.device)
    bound = block_bytes // threads
    step = images_per_block(plan.numbers_per_image, shift_bytes(geometry), precision.computed, bound)
    enough = -(-LEAST_POSITIONS // geometry.patches_per_image)
    if threads > 1:
        step = min(step, max(enough, -(-inputs.shape[0] // threads)))
    tasks = [
        partial(
            single_additions, sums, inputs[block], None if outputs is None else outputs[block], geometry, plan,
            precision,
        )
        for first in range(0, inputs.shape[0], step)
        for block in (slice(first, first + step),)
    ]  # fmt: skip
    run_in_turns(tasks, inputs.device)


def _update_by_terms(
    sums: ShiftSums,
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    plan: GramPlan,
    precision: Precision,
    block_bytes: int,
) -> None:
    """Many products per block: threads take a term each."""
    numbers = plan.numbers_per_image + (job_threads(inputs.device) - 1) * plan.numbers_per_thread
    step = images_per_block(numbers, shift_bytes(geometry), precision.computed, block_bytes)
    for first in range(0, inputs.shape[0], step):
        block = slice(first, first + step)
        targets = None
        if outputs is not None:
            targets = rows_of(outputs[block], geometry.out_channels, geometry, plan, precision)
            for addition in response_additions(sums, targets, geometry):
                addition()
        rows = rows_of(padded(inputs[block], geometry), geometry.in_channels, geometry, plan, precision)
        _add_rows(sums, rows, targets, geometry, plan)


def _add_rows(sums: ShiftSums, rows: Rows, targets: Rows | None, geometry: LayerGeometry, plan: GramPlan) -> None:
    groups, width = geometry.groups, geometry.in_channels // geometry.groups
    windows = plan.tap_windows()
    sum_x = sums.sum_x.view(groups, width, geometry.taps)
    for tap, (seen, _) in windows.items():
        sum_x[:, :, tap] += rows.sums(*seen).view(groups, width)
    jobs = [
        partial(_add_term, total, term, rows, groups, plan)
        for total, term in zip(sums.products, plan.terms.terms, strict=True)
    ]
    if targets is not None:
        cross = sums.cross.view(groups, width, geometry.taps, -1)
        jobs[:0] = [
            partial(_add_tap, cross[:, :, tap], rows, seen, targets, outputs, groups, plan)
            for tap, (seen, outputs) in windows.items()
        ]
    run_jobs(jobs, rows.values.device)


def _add_term(total: Tensor, term: Term, rows: Rows, groups: int, plan: GramPlan) -> None:
    """A job; its windows are freed before its thread makes those of the next."""
    first = second = rows.window(term.rows.first, term.columns.first, groups, plan)
    if not term.unshifted:
        second = rows.window(term.rows.second, term.columns.second, groups, plan)
    add_product(total, first, second)


def _add_tap(
    total: Tensor, rows: Rows, seen: Window, targets: Rows, outputs: Window, groups: int, plan: GramPlan
) -> None:
    add_product(total, rows.window(*seen, groups, plan), targets.window(*outputs, groups, plan))


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
