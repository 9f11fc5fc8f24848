"""Layers whose Gram is one product per block of images: those without taps to shift, and explicit patches.

Everything that a block adds to the sums is computed first and added afterwards, so that blocks can be computed side
by side and still be added in their order (`kernels.parallel.run_in_turns`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from streamsparse.kernels.gram_plan import GramPlan
from streamsparse.kernels.parallel import Addition, run_jobs
from streamsparse.kernels.pivots import add_pivots, subtract_pivots
from streamsparse.kernels.precision import Precision
from streamsparse.kernels.products import Factor, product_additions
from streamsparse.kernels.shift_sums import ShiftSums
from streamsparse.kernels.windows import Rows, at, dense, padded, rows_of
from streamsparse.types import LayerGeometry


def single_additions(
    sums: ShiftSums,
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    plan: GramPlan,
    precision: Precision,
) -> Iterator[Addition]:
    """What one block of images adds to `sums`, apart from the count; computed as it is asked for."""
    find = _patches_factor if plan.method == "patches" else _pointwise_factor
    factor = find(inputs, geometry, plan, precision)
    if factor is not None:
        yield from product_additions(sums.products[0], factor, factor)
        total = factor.sums()
        add_pivots(total, factor.pivots, factor.values.shape[-1])
        yield partial(sums.sum_x.add_, total.view_as(sums.sum_x))
    if outputs is not None:
        targets = rows_of(outputs, geometry.out_channels, geometry, plan, precision)
        yield from response_additions(sums, targets, geometry)
        if factor is not None:
            everything = slice(None), slice(None)
            seen = everything if plan.method == "patches" else plan.tap_windows()[0][1]
            yield from product_additions(sums.cross, factor, targets.window(*seen, geometry.groups, plan))


def _pointwise_factor(
    inputs: Tensor, geometry: LayerGeometry, plan: GramPlan, precision: Precision
) -> Factor | None:
    """The inputs that the layer's only tap sees; None if it sees only padding."""
    windows = plan.tap_windows()
    if not windows:
        return None
    rows = rows_of(padded(inputs, geometry), geometry.in_channels, geometry, plan, precision)
    return rows.window(*windows[0][0], geometry.groups, plan)


def _patches_factor(inputs: Tensor, geometry: LayerGeometry, plan: GramPlan, precision: Precision) -> Factor:
    rows = dense(padded(inputs, geometry).to(precision.computed), geometry.in_channels, geometry, plan)
    patches = _unfolded(rows, geometry, plan).view(geometry.groups * geometry.columns, -1)
    patches, pivots = subtract_pivots(patches)
    values = precision.rounded(patches).view(geometry.groups, geometry.columns, -1)
    return Factor(values, pivots, values.flatten(0, 1).sum(-1, dtype=precision.computed).double().clone)


def _unfolded(
    rows: Float[Tensor, "channels ..."], geometry: LayerGeometry, plan: GramPlan
) -> Float[Tensor, "channels taps ..."]:
    """Patches of one block, (channels, taps, and the dimensions of an output in the layout of `rows`)."""
    images = rows.shape[3 if plan.images_innermost else 1]
    output = (plan.rows.outputs, plan.columns.outputs)
    shape = (*output, images) if plan.images_innermost else (images, *output)
    columns = rows.new_zeros(geometry.in_channels, geometry.taps, *shape)
    jobs = [
        partial(at(columns[:, tap], *outputs, plan).copy_, at(rows, *seen, plan))
        for tap, (seen, outputs) in plan.tap_windows().items()
    ]
    run_jobs(jobs, rows.device)
    return columns


def response_additions(sums: ShiftSums, targets: Rows, geometry: LayerGeometry) -> Iterator[Addition]:
    """What the responses of one block add to their own sums."""
    flat = targets.values.flatten(1)
    total = flat.sum(-1, dtype=targets.computed).double()  # torch sums pairwise: 1e-7 in float32
    norms = torch.linalg.vector_norm(targets.values.flatten(2), dim=-1, dtype=targets.computed)
    power = norms.double().square().sum(-1)  # of short runs, so that float32 suffices
    if targets.pivots is not None:  # Σy² = Σ(y−q)² + q·(Σ(y−q) + Σy)
        channels = targets.pivots.channels
        differences = total[channels]
        add_pivots(total, targets.pivots, flat.shape[1])
        power[channels] += targets.pivots.values * (differences + total[channels])
    yield partial(sums.power.add_, power.view(geometry.groups, -1).sum(-1))
    yield partial(sums.sum_y.add_, total.view(geometry.groups, -1))
