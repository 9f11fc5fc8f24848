"""Products between two ranges of channels: the part of a Gram that lies beside its diagonal, without patches.

For channels I and J of one convolution group, the tap pair (t, t′) with t ≤ t′ needs Σ x_I(u)·x_J(u + Δ)ᵀ, and
the pair (t′, t) needs Σ x_I(u + Δ)·x_J(u)ᵀ, over the same positions u (`kernels.shift_terms`):

               J, tap t     J, tap t′
    I, tap t      ·          forward        one product each way for every shifted term,
    I, tap t′  backward         ·           a single one for an unshifted term

The square over I ∪ J is never formed.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor

from streamsparse.kernels.gram_plan import GramPlan, gram_plan
from streamsparse.kernels.parallel import job_threads, run_jobs
from streamsparse.kernels.precision import ProductDtype, precision_of
from streamsparse.kernels.products import add_product
from streamsparse.kernels.shift_terms import Terms, shift_terms
from streamsparse.kernels.windows import Rows, images_per_block, not_finite, padded, rows_of
from streamsparse.types import LayerGeometry


def pair_shape(geometry: LayerGeometry, rows: int, columns: int) -> tuple[int, int, int]:
    """Shape of the sums between `rows` and `columns` channels: (products, rows, columns)."""
    terms = _terms(geometry).terms
    return 2 * len(terms) - sum(term.unshifted for term in terms), rows, columns


def update_pairs(
    products: Float64[Tensor, "products rows columns"],
    first: Tensor,
    second: Tensor,
    geometry: LayerGeometry,
    *,
    product_dtype: ProductDtype,
    block_bytes: int,
) -> None:
    """Add a batch of images, in place.

    Args:
        products: changed in place.
        first, second: the layer's input reduced to the two ranges of channels, of one convolution group:
            (images, channels, ...), or (images, ..., features) for a linear layer.
        geometry: of the whole layer.
        product_dtype: of the products inside one block of images.
        block_bytes: bound on the copies held at once beside one product per thread (at least one image).

    Raises:
        NonFiniteError: the batch holds NaN or infinity; `products` is then worthless.
    """
    plan, precision = gram_plan(geometry), precision_of(product_dtype)
    widths = products.shape[1], products.shape[2]
    # converted, as rows; as windows and repacked by every thread
    numbers = (2 + 2 * job_threads(first.device)) * sum(widths) * plan.rows.size * plan.columns.size
    step = images_per_block(numbers, 8 * products.numel(), precision.computed, block_bytes)
    with precision.on(first.device):
        for start in range(0, first.shape[0], step):
            block = slice(start, start + step)
            both = [
                rows_of(padded(images[block], geometry), width, geometry, plan, precision)
                for images, width in zip((first, second), widths, strict=True)
            ]
            if not all(bool(torch.isfinite(rows.totals).all()) for rows in both):
                raise not_finite(geometry)
            _add_pairs(products, both[0], both[1], geometry, plan)


def _add_pairs(products: Tensor, first: Rows, second: Rows, geometry: LayerGeometry, plan: GramPlan) -> None:
    totals = iter(products)
    jobs = []
    for term in _terms(geometry).terms:
        here, there = (term.rows.first, term.columns.first), (term.rows.second, term.columns.second)
        jobs.append(partial(_add_pair, next(totals), first, here, second, there, plan))
        if not term.unshifted:
            jobs.append(partial(_add_pair, next(totals), first, there, second, here, plan))
    run_jobs(jobs, products.device)


def _add_pair(
    total: Tensor,
    first: Rows,
    first_seen: tuple[slice, slice],
    second: Rows,
    second_seen: tuple[slice, slice],
    plan: GramPlan,
) -> None:
    """A job; its windows are freed before its thread makes those of the next."""
    add_product(total.unsqueeze(0), first.window(*first_seen, 1, plan), second.window(*second_seen, 1, plan))


def finish_pairs(
    products: Float64[Tensor, "products rows columns"], geometry: LayerGeometry
) -> Float64[Tensor, "rows_taps columns_taps"]:
    """The block of the Gram, (rows·taps, columns·taps), channel-major."""
    terms, taps = _terms(geometry), geometry.taps
    forward, backward = _numbers(terms)
    gram = products.new_zeros(products.shape[1], taps, products.shape[2], taps)
    for (tap, partner), used in terms.sums.items():
        gram[:, tap, :, partner] = products[[forward[number] for number in used]].sum(0)
        if partner != tap:
            gram[:, partner, :, tap] = products[[backward[number] for number in used]].sum(0)
    return gram.view(products.shape[1] * taps, products.shape[2] * taps)


def _terms(geometry: LayerGeometry) -> Terms:
    """Shifted products even where the plan of a whole layer says patches."""
    plan = gram_plan(geometry)
    return shift_terms(plan.rows, plan.columns)


def _numbers(terms: Terms) -> tuple[list[int], list[int]]:
    """Where each term's product lies among the sums, and where the one of the other direction."""
    forward: list[int] = []
    backward: list[int] = []
    number = 0
    for term in terms.terms:
        forward.append(number)
        number += not term.unshifted
        backward.append(number)
        number += 1
    return forward, backward
