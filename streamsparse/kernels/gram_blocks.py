"""Statistics of one layer in blocks, for a Gram that does not fit a worker (`kernels.block_layout` draws them).

Each block is accumulated on its own, from the images of the whole layer, of which it takes the channels that it
needs. A diagonal block is the layer of those channels alone (`kernels.shifts`), with their share of the cross
term; an off-diagonal one is the products between two ranges (`kernels.shift_pairs`). Like all sums they are raw
and additive: chunks, folds, shards and sites merge by addition in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from streamsparse.errors import StatisticsError
from streamsparse.kernels.block_layout import (
    GramBlock,
    block_channels,
    block_from_json,
    block_layer,
    block_slices,
    finished_fields,
    length,
    split_blocks,
    whole_block,
)
from streamsparse.kernels.precision import ProductDtype
from streamsparse.kernels.shift_pairs import finish_pairs, pair_shape, update_pairs
from streamsparse.kernels.shift_sums import SHIFT_FIELDS, ShiftSums, finish, shift_field_shapes
from streamsparse.kernels.shifts import BLOCK_BYTES, update_shifts
from streamsparse.kernels.statistics import field_shapes
from streamsparse.kernels.windows import check_shape
from streamsparse.types import LayerGeometry

__all__ = (
    "BlockSums",
    "GramBlock",
    "block_bytes",
    "block_from_json",
    "block_from_tensors",
    "block_shapes",
    "block_slices",
    "empty_block",
    "finish_block",
    "finished_shapes",
    "merge_block",
    "split_blocks",
    "update_block",
    "whole_block",
)

PAIR_FIELDS = ("products",)


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Raw additive sums of one block, float64: those of `ShiftSums` for a diagonal block, else `products` alone.

    Attributes:
        fields: by name; off the diagonal `products` are (products, rows, columns).
    """

    fields: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, not copied."""
        return dict(self.fields)


def block_shapes(geometry: LayerGeometry, block: GramBlock) -> dict[str, tuple[int, ...]]:
    """Shape of every field of the block's `BlockSums`."""
    part = block_layer(geometry, block)
    if block.diagonal:
        return shift_field_shapes(part)
    return {"products": pair_shape(part, length(block.rows), length(block.columns))}


def block_bytes(geometry: LayerGeometry, block: GramBlock) -> int:
    """Bytes that one `BlockSums` of the block occupies."""
    return sum(8 * prod(shape) for shape in block_shapes(geometry, block).values())


def finished_shapes(geometry: LayerGeometry, block: GramBlock) -> dict[str, tuple[int, ...]]:
    """Shape of every array that `finish_block` returns."""
    if block.diagonal:
        shapes = field_shapes(block_layer(geometry, block))
        return {name: shapes[name] for name in finished_fields(block)}
    return {"gram": (1, length(block.rows) * geometry.taps, length(block.columns) * geometry.taps)}


def empty_block(geometry: LayerGeometry, block: GramBlock, device: torch.device | str = "cpu") -> BlockSums:
    """The sums over no patches."""
    shapes = block_shapes(geometry, block)
    zeros = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
    return BlockSums(zeros)


def block_from_tensors(tensors: Mapping[str, Tensor]) -> BlockSums:
    """The inverse of `BlockSums.tensors`, not copied.

    Raises:
        StatisticsError: the fields are those of no block, or not float64.
    """
    if set(tensors) not in (set(SHIFT_FIELDS), set(PAIR_FIELDS)):
        raise StatisticsError(
            "These are not the sums of a block.",
            expected=f"{', '.join(SHIFT_FIELDS)}; or {', '.join(PAIR_FIELDS)} alone",
            got=", ".join(tensors),
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64:
            raise StatisticsError(
                "The sums of a block are kept in double precision.",
                expected=torch.float64,
                got=tensor.dtype,
                where=name,
            )
    return BlockSums(dict(tensors))


def update_block(
    sums: BlockSums,
    inputs: Tensor,
    outputs: Tensor | None,
    geometry: LayerGeometry,
    block: GramBlock,
    *,
    product_dtype: ProductDtype = "float32",
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add a batch of images of the whole layer, in place; see `update_shifts`.

    Off the diagonal the outputs are not looked at.

    Raises:
        NonFiniteError: the block's channels hold NaN or infinity; `sums` is then worthless.
        StatisticsError: shapes that do not fit the layer or the block.
    """
    check_shape("input", inputs, geometry.input_shape, geometry)
    _check_sums(sums, geometry, block)
    part = block_layer(geometry, block)
    if not block.diagonal:
        first, second = (_chosen(inputs, geometry, block, side) for side in (block.rows, block.columns))
        update_pairs(
            sums.fields["products"], first, second, part, product_dtype=product_dtype, block_bytes=block_bytes
        )
        return
    if outputs is not None:
        check_shape("output", outputs, geometry.output_shape, geometry)
        if part.out_channels != geometry.out_channels:
            start = block.first_group * (geometry.out_channels // geometry.groups)
            outputs = outputs[:, start : start + part.out_channels]
    chosen = _chosen(inputs, geometry, block, block.rows)
    whole = ShiftSums(**sums.fields)
    update_shifts(whole, chosen, outputs, part, product_dtype=product_dtype, block_bytes=block_bytes)


def merge_block(into: BlockSums, other: BlockSums) -> None:
    """Add the sums of other patches, in place.

    Raises:
        StatisticsError: they belong to blocks of different shapes.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in sums.fields.items()} for sums in (into, other)]
    if shapes[0] != shapes[1]:
        raise StatisticsError(
            "Sums of differently shaped blocks cannot be merged.", expected=shapes[0], got=shapes[1]
        )
    for name, tensor in into.fields.items():
        tensor.add_(other.fields[name])


def finish_block(sums: BlockSums, geometry: LayerGeometry, block: GramBlock) -> dict[str, Tensor]:
    """The block's share of the layer's `Sums`, float64, as `block_slices` places it.

    Returns:
        "gram" (groups, rows·taps, columns·taps); for a diagonal block also "cross" (groups, rows·taps, outputs)
        and "sum_x" (groups, rows·taps), and where its rows start at 0 "sum_y", "power" and "count".
    """
    _check_sums(sums, geometry, block)
    part = block_layer(geometry, block)
    if not block.diagonal:
        return {"gram": finish_pairs(sums.fields["products"], part).unsqueeze(0)}
    found = finish(ShiftSums(**sums.fields), part).tensors()
    return {name: found[name] for name in finished_fields(block)}


def _chosen(inputs: Tensor, geometry: LayerGeometry, block: GramBlock, side: tuple[int, int]) -> Tensor:
    """The channels of one side of the block, as a view."""
    channels = block_channels(geometry, block, side)
    return inputs[..., channels] if geometry.kind == "linear" else inputs[:, channels]


def _check_sums(sums: BlockSums, geometry: LayerGeometry, block: GramBlock) -> None:
    expected = block_shapes(geometry, block)
    found = {name: tuple(tensor.shape) for name, tensor in sums.fields.items()}
    if found != expected:
        raise StatisticsError(
            f"The sums are not those of block {block.name} of layer '{geometry.layer}'.",
            expected=expected,
            got=found,
            where=geometry.layer,
            remedy="begin with `empty_block` of the same block",
        )
