"""How a layer's Gram is formed: by shifted products, or from patches in bounded blocks.

The choice follows from the geometry alone, so that statistics of the same layer always merge. The cost model
counts multiply-adds of one image; a copied number is as expensive as `COPY` of them, and every product has a
fixed price that a block of images shares:

    shifts    Σ over terms   area·(channels² per group)·groups  +  2·COPY·area·channels        (half if unshifted)
    patches   positions·columns²·groups / 2                     +  COPY·positions·columns·groups

Shifts win nearly always; patches win on few channels (depthwise, grayscale), where copies dominate, and with
strides as large as the kernel, where no two tap pairs share a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from streamsparse.kernels.shift_terms import Axis, Terms, as_slice, shift_terms
from streamsparse.types import LayerGeometry

COPY = 40
WIDE = 14
CALL = 20_000

Window = tuple[slice, slice]
"""Positions of an image: rows and columns."""


@dataclass(frozen=True)
class GramPlan:
    """What `kernels.shifts` does for one layer.

    Attributes:
        method: "shifts" or "patches".
        rows, columns: the two axes, after padding that is not zeros was made explicit; a 1-d convolution has one
            row, a linear layer one row and as many columns as positions that share its weight.
        terms: the products to sum; for "patches" a single one, of the patches with themselves.
        images_innermost: rows are laid out (channels, height, width, images), which copies windows of narrow maps
            in long runs; otherwise (channels, images, height, width), which is copied fastest from images.
        numbers_per_image: numbers held at once per image by one thread, to bound a block of images.
        numbers_per_thread: those of them that every thread of a block has for itself, where terms are shared out.
    """

    method: str
    rows: Axis
    columns: Axis
    terms: Terms
    images_innermost: bool
    numbers_per_image: int
    numbers_per_thread: int

    @property
    def single(self) -> bool:
        """One product of the inputs with themselves is the Gram."""
        return self.method == "patches" or self.rows.taps == 1 == self.columns.taps

    def tap_windows(self) -> dict[int, tuple[Window, Window]]:
        """By tap, the inputs that it sees and the outputs that see them; not the taps that see only padding."""
        found = {}
        for tap in range(self.rows.taps * self.columns.taps):
            y, x = divmod(tap, self.columns.taps)
            height, width = self.rows.output_run(y, y), self.columns.output_run(x, x)
            if height and width:
                seen = as_slice(self.rows.inputs_seen(y, height)), as_slice(self.columns.inputs_seen(x, width))
                found[tap] = seen, (as_slice(height), as_slice(width))
        return found


@cache
def gram_plan(geometry: LayerGeometry) -> GramPlan:
    """The cheaper method for a layer by the cost model above."""
    rows, columns = axes(geometry)
    terms = shift_terms(rows, columns)
    inputs = geometry.in_channels * rows.size * columns.size
    outputs = geometry.out_channels * rows.outputs * columns.outputs
    unfolded = geometry.groups * geometry.columns * rows.outputs * columns.outputs
    held = 2 * inputs + 3 * outputs  # converted, as rows, and a window of the responses
    innermost = columns.size < WIDE and geometry.kind != "linear" and not _pointwise(geometry)
    windows = 3 * max(inputs, outputs) if geometry.taps > 1 else 3 * inputs  # two windows, one repacked
    if geometry.taps == 1 or shift_cost(geometry, terms) <= patch_cost(geometry):
        return GramPlan("shifts", rows, columns, terms, innermost, held + windows, windows)
    single = shift_terms(_plain(rows.outputs), _plain(columns.outputs))
    return GramPlan("patches", rows, columns, single, innermost, held + 2 * unfolded, 0)  # patches, repacked


def axes(geometry: LayerGeometry) -> tuple[Axis, Axis]:
    """The layer as a two-dimensional convolution over zero padding."""
    if geometry.kind == "linear":
        return _plain(1), _plain(geometry.patches_per_image)
    zeros = geometry.padding_mode == "zeros"
    found = []
    for number, (before, after) in enumerate(geometry.padding):
        size = geometry.input_shape[number + 1] + (0 if zeros else before + after)
        found.append(
            Axis(
                size=size,
                outputs=geometry.output_shape[number + 1],
                taps=geometry.kernel[number],
                stride=geometry.stride[number],
                dilation=geometry.dilation[number],
                before=before if zeros else 0,
            )
        )
    return (found[0], found[1]) if len(found) == 2 else (_plain(1), found[0])


def shift_cost(geometry: LayerGeometry, terms: Terms) -> float:
    """Multiply-adds, and what is as expensive, of one image's shifted products."""
    width, channels = geometry.in_channels // geometry.groups, geometry.in_channels
    products = sum(term.area * channels * width / (2 if term.unshifted else 1) for term in terms.terms)
    return products + sum(2 * COPY * term.area * channels for term in terms.terms) + CALL * len(terms.terms)


def patch_cost(geometry: LayerGeometry) -> float:
    """The same for products of whole patches."""
    unfolded = geometry.patches_per_image * geometry.columns * geometry.groups
    return unfolded * (geometry.columns / 2 + COPY) + CALL


def _plain(size: int) -> Axis:
    return Axis(size=size, outputs=size, taps=1, stride=1, dilation=1, before=0)


def _pointwise(geometry: LayerGeometry) -> bool:
    return geometry.taps == 1 and all(stride == 1 for stride in geometry.stride)
