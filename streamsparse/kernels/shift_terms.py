"""Which shifted products of an image make up the Gram of its convolution patches.

Along one axis, output o sees input u = stride·o + dilation·t − before through tap t. The Gram entry of the taps
(t, t′) sums x(u)·x(u + Δ) over its outputs, with Δ = dilation·(t′ − t). Tap pairs of equal Δ (and equal u modulo
the stride) sum the same products, except near the borders:

    tap pair (0,0)   |-----------------------|
    tap pair (1,1)   |---------------------------|
    tap pair (2,2)       |-----------------------|
    runs             | 1 |        2          | 3 |      each run is summed once, each pair adds its runs

So a 3×3 convolution over a large image needs 13 products of channels instead of 45. Zero padding contributes
nothing and is never stored. Integers only: no arrays here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

TapPair = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """A convolution along one spatial dimension; sizes in pixels.

    Attributes:
        size: of the input; outputs: of the output.
        taps: of the kernel; stride, dilation: of the layer.
        before: zeros in front of the input.
    """

    size: int
    outputs: int
    taps: int
    stride: int
    dilation: int
    before: int

    def output_run(self, tap: int, partner: int) -> range:
        """Outputs for which both taps lie inside the input."""
        low = min(tap, partner) * self.dilation - self.before
        high = max(tap, partner) * self.dilation - self.before
        first = max(0, -(low // self.stride))  # ceiling of −low/stride
        stop = min(self.outputs, (self.size - 1 - high) // self.stride + 1)
        return range(first, max(first, stop))

    def inputs_seen(self, tap: int, outputs: range) -> range:
        """The inputs that a run of outputs sees through a tap."""
        offset = tap * self.dilation - self.before
        return range(self.stride * outputs.start + offset, self.stride * outputs.stop + offset, self.stride)


@dataclass(frozen=True)
class Run:
    """Positions along one axis: `positions` of the first factor; the second factor lies `shift` further."""

    positions: range
    shift: int

    @property
    def first(self) -> slice:
        """Where the first factor lies."""
        return as_slice(self.positions)

    @property
    def second(self) -> slice:
        """Where the second factor lies."""
        return as_slice(self.positions, self.shift)


@dataclass(frozen=True)
class Term:
    """One product of shifted channels: Σ over rows and columns of x(row, column)·x(row + Δ, column + Δ′)ᵀ."""

    rows: Run
    columns: Run

    @property
    def area(self) -> int:
        """Positions of one image that are summed."""
        return len(self.rows.positions) * len(self.columns.positions)

    @property
    def unshifted(self) -> bool:
        """The product is symmetric."""
        return self.rows.shift == 0 == self.columns.shift


@dataclass(frozen=True)
class Terms:
    """All products of a layer, and how tap pairs add them up.

    Attributes:
        terms: each is computed once.
        sums: for the tap pair (t, t′) with t ≤ t′ in `weight.flatten(2)` order, the positions in `terms` whose
            sum is its block of the Gram; pairs that never meet inside the image are left out.
    """

    terms: tuple[Term, ...]
    sums: dict[TapPair, tuple[int, ...]]


def as_slice(positions: range, shift: int = 0) -> slice:
    """The same positions, `shift` further, as an index."""
    return slice(positions.start + shift, positions.stop + shift, positions.step)


@cache
def shift_terms(rows: Axis, columns: Axis) -> Terms:
    """The products that a convolution's Gram needs."""
    by_rows, by_columns = axis_runs(rows), axis_runs(columns)
    taps = list(product(range(rows.taps), range(columns.taps)))
    numbers: dict[Term, int] = {}
    sums = {}
    for a, (y, x) in enumerate(taps):
        for b, (y_partner, x_partner) in enumerate(taps[a:], start=a):
            pairs = product(by_rows[y, y_partner], by_columns[x, x_partner])
            used = tuple(numbers.setdefault(Term(row, column), len(numbers)) for row, column in pairs)
            if used:
                sums[a, b] = used
    return Terms(tuple(numbers), sums)


def axis_runs(axis: Axis) -> dict[TapPair, tuple[Run, ...]]:
    """For every ordered pair of taps, the disjoint runs of positions that it sums; runs are shared by pairs."""
    seen: dict[TapPair, range] = {}
    alike: dict[tuple[int, int], list[TapPair]] = defaultdict(list)
    for tap, partner in product(range(axis.taps), repeat=2):
        positions = axis.inputs_seen(tap, axis.output_run(tap, partner))
        seen[tap, partner] = positions
        if positions:
            alike[partner - tap, positions.start % axis.stride].append((tap, partner))
    runs: dict[TapPair, tuple[Run, ...]] = dict.fromkeys(seen, ())
    for (distance, _), pairs in alike.items():
        ends = sorted({end for pair in pairs for end in (seen[pair].start, seen[pair].stop)})
        pieces = [range(start, stop, axis.stride) for start, stop in pairwise(ends)]
        for pair in pairs:
            inside = [piece for piece in pieces if seen[pair].start <= piece.start < seen[pair].stop]
            runs[pair] = tuple(Run(piece, distance * axis.dilation) for piece in inside)
    return runs
