"""Blocks of a layer's Gram: pairs of ranges of input channels, and where they lie. Integers only: no arrays here.

one group, channels in three ranges        groups in two runs
    +---+---+---+                              +---+---+---+---+
    | D | o | o |   D diagonal blocks          | D |   |       |
    +---+---+---+   o off-diagonal blocks      +---+---+       |
        | D | o |                              |   | D |       |   groups never meet:
        +---+---+   below the diagonal lie     +---+---+---+---+   between them there is
            | D |   the transposes of o        |       | D |   |   nothing to sum
            +---+                              |       +---+---+
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from streamsparse.errors import StatisticsError
from streamsparse.kernels.statistics import FIELDS
from streamsparse.types import LayerGeometry

_ONCE = ("sum_y", "power", "count")  # of the responses: kept by the diagonal blocks whose rows start at 0


@dataclass(frozen=True)
class GramBlock:
    """A block of a layer's Gram.

    Attributes:
        first_group, groups: the run of convolution groups; exactly one where channels are split inside a group.
        rows, columns: [start, stop) of input channels within each group; equal for a diagonal block, columns
            behind the rows for an off-diagonal one.

    Raises:
        StatisticsError: ranges that are empty, overlap without being equal, or split more than one group.
    """

    first_group: int
    groups: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def __post_init__(self) -> None:
        ordered = self.rows == self.columns or (self.rows[1] <= self.columns[0] and self.groups == 1)
        filled = 0 <= self.rows[0] < self.rows[1] and self.columns[0] < self.columns[1]
        if not (ordered and filled and self.first_group >= 0 and self.groups >= 1):
            raise StatisticsError(
                "This is no block of a Gram.",
                expected="nonempty ranges of channels, equal, or the columns behind the rows within one group",
                got=self,
            )

    @property
    def diagonal(self) -> bool:
        """Whether rows and columns are the same channels."""
        return self.rows == self.columns

    @property
    def name(self) -> str:
        """Unique within a layer, fit for a file name: g0-1.r0-256.c256-512."""
        groups = f"g{self.first_group}-{self.first_group + self.groups}"
        return f"{groups}.r{self.rows[0]}-{self.rows[1]}.c{self.columns[0]}-{self.columns[1]}"


def block_from_json(value: Mapping[str, Any]) -> GramBlock:
    """The inverse of `dataclasses.asdict` after JSON; KeyError if fields are missing."""
    (first, stop), (first_column, stop_column) = value["rows"], value["columns"]
    return GramBlock(value["first_group"], value["groups"], (first, stop), (first_column, stop_column))


def whole_block(geometry: LayerGeometry) -> GramBlock:
    """All groups, all channels."""
    width = geometry.in_channels // geometry.groups
    return GramBlock(0, geometry.groups, (0, width), (0, width))


def split_blocks(geometry: LayerGeometry, channels: int) -> tuple[GramBlock, ...]:
    """Blocks that cover the layer's Gram, of at most `channels` input channels on a side.

    Groups stay whole if one has no more than `channels`: then the blocks are runs of groups (one block if all
    fit). Otherwise every group is split on its own: diagonal blocks first, then all pairs.

    Raises:
        StatisticsError: `channels` is less than 1.
    """
    if channels < 1:
        raise StatisticsError(
            "Blocks need at least one channel.", expected="1 or more", got=channels, where=geometry.layer
        )
    width = geometry.in_channels // geometry.groups
    if width <= channels:
        whole = (0, width)
        runs = _ranges(geometry.groups, channels // width)
        return tuple(GramBlock(first, stop - first, whole, whole) for first, stop in runs)
    parts = _ranges(width, channels)
    pairs = [*((part, part) for part in parts), *combinations(parts, 2)]
    return tuple(GramBlock(group, 1, *pair) for group in range(geometry.groups) for pair in pairs)


def _ranges(size: int, longest: int) -> list[tuple[int, int]]:
    """As few ranges as possible, all of one length but for a shorter last one, as chunks of an array are."""
    step = -(-size // -(-size // longest))
    return list(pairwise([*range(0, size, step), size]))


def block_slices(geometry: LayerGeometry, block: GramBlock) -> dict[str, tuple[slice, ...]]:
    """Where each array of `finish_block` lies in the whole layer's arrays (`field_shapes`).

    The half of the Gram below the diagonal is the caller's: gram[:, columns, rows] is the block transposed.
    """
    groups = slice(block.first_group, block.first_group + block.groups)
    rows, columns = (
        slice(start * geometry.taps, stop * geometry.taps) for start, stop in (block.rows, block.columns)
    )
    everything = slice(None)
    places = {
        "gram": (groups, rows, columns),
        "cross": (groups, rows, everything),
        "sum_x": (groups, rows),
        "sum_y": (groups, everything),
        "power": (groups,),
        "count": (everything,),
    }
    return {name: places[name] for name in finished_fields(block)}


def finished_fields(block: GramBlock) -> tuple[str, ...]:
    """Names of the arrays that the block contributes to."""
    if not block.diagonal:
        return ("gram",)
    return FIELDS if block.rows[0] == 0 else tuple(name for name in FIELDS if name not in _ONCE)


def block_layer(geometry: LayerGeometry, block: GramBlock) -> LayerGeometry:
    """The layer of the block's groups and rows alone, with all outputs of these groups.

    Raises:
        StatisticsError: the layer has no such groups or channels.
    """
    width, outputs = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    fits = block.first_group + block.groups <= geometry.groups and block.columns[1] <= width
    if not fits or (block.groups > 1 and block.rows != (0, width)):
        raise StatisticsError(
            f"The block does not lie inside the Gram of layer '{geometry.layer}'.",
            expected=f"{geometry.groups} groups of {width} channels; whole ones where a block has several",
            got=block.name,
            where=geometry.layer,
        )
    channels, outputs = block.groups * length(block.rows), block.groups * outputs
    linear = geometry.kind == "linear"
    input_shape, output_shape = geometry.input_shape, geometry.output_shape
    return replace(
        geometry,
        in_channels=channels,
        out_channels=outputs,
        groups=block.groups,
        input_shape=(*input_shape[:-1], channels) if linear else (channels, *input_shape[1:]),
        output_shape=(*output_shape[:-1], outputs) if linear else (outputs, *output_shape[1:]),
    )


def block_channels(geometry: LayerGeometry, block: GramBlock, side: tuple[int, int]) -> slice:
    """The input channels of the whole layer (features of a linear one) that one side of the block holds."""
    first = block.first_group * (geometry.in_channels // geometry.groups) + side[0]
    return slice(first, first + block.groups * length(side))


def length(side: tuple[int, int]) -> int:
    """Channels of a range."""
    return side[1] - side[0]
