"""A Gram in blocks of channels is the Gram: every geometry, every split, any order of accumulation."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels.folds import empty_block_folds, update_block_folds
from streamsparse.kernels.gram_blocks import (
    BlockSums,
    GramBlock,
    block_bytes,
    block_from_json,
    block_from_tensors,
    block_shapes,
    block_slices,
    empty_block,
    finish_block,
    finished_shapes,
    merge_block,
    split_blocks,
    update_block,
    whole_block,
)
from streamsparse.kernels.shift_sums import empty_shifts, finish, shift_bytes
from streamsparse.kernels.shifts import update_shifts
from streamsparse.kernels.statistics import FIELDS, field_shapes
from streamsparse.types import LayerGeometry
from tests.kernels.test_shifts import activations, assert_close, convolution, geometries, linear

WIDE = convolution((12, 5), (6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
GROUPED = convolution((12, 6), (6, 7), (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 1), groups=3)


@st.composite
def wide_geometries(draw: st.DrawFn) -> LayerGeometry:
    """Any convolution with up to six channels in a group, or a linear layer with or without leading dimensions."""
    if draw(st.integers(0, 4)) == 0:
        leading = draw(st.sampled_from(((), (3,), (2, 2))))
        return linear(draw(st.integers(1, 7)), draw(st.integers(1, 3)), leading)
    geometry = draw(geometries())
    channels = geometry.groups * draw(st.integers(1, 6))
    return replace(geometry, in_channels=channels, input_shape=(channels, *geometry.input_shape[1:]))


def assembled(parts: list[tuple[GramBlock, BlockSums]], geometry: LayerGeometry) -> dict[str, Tensor]:
    """The whole layer's arrays; every number of them is written, the Gram's once."""
    nothing = float("nan")
    arrays = {
        name: torch.full(shape, nothing, dtype=torch.float64) for name, shape in field_shapes(geometry).items()
    }
    for block, sums in parts:
        finished, places = finish_block(sums, geometry, block), block_slices(geometry, block)
        assert {name: tuple(value.shape) for name, value in finished.items()} == finished_shapes(geometry, block)
        assert set(places) == set(finished)
        for name, value in finished.items():
            assert name == "count" or bool(arrays[name][places[name]].isnan().all()), "written twice"
            arrays[name][places[name]] = value
        if not block.diagonal:
            groups, rows, columns = places["gram"]
            arrays["gram"][groups, columns, rows] = finished["gram"].transpose(1, 2)
    return arrays


def accumulated(
    geometry: LayerGeometry, channels: int, inputs: Tensor, outputs: Tensor, dtype: torch.dtype, cut: int = 0
) -> list[tuple[GramBlock, BlockSums]]:
    """All blocks, each in two accumulators that are merged."""
    parts = []
    for block in split_blocks(geometry, channels):
        sums, rest = empty_block(geometry, block), empty_block(geometry, block)
        for target, chosen in ((sums, slice(cut, None)), (rest, slice(0, cut // 2)), (rest, slice(cut // 2, cut))):
            if inputs[chosen].shape[0]:
                update_block(
                    target, inputs[chosen], outputs[chosen], geometry, block, product_dtype=dtype, block_bytes=1
                )
        merge_block(sums, block_from_tensors(rest.tensors()))
        parts.append((block, sums))
    return parts


@given(geometry=wide_geometries(), channels=st.integers(1, 8), cut=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_blocks_of_any_geometry_assemble_to_its_patches(
    geometry: LayerGeometry, channels: int, cut: int, seed: int
) -> None:
    inputs, outputs = activations(geometry, 5, seed)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        parts = accumulated(geometry, channels, inputs, outputs, dtype, cut)
        assert_close(assembled(parts, geometry), inputs, outputs, geometry, tolerance)


@given(geometry=wide_geometries(), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_whole_block_is_the_undivided_layer(geometry: LayerGeometry, seed: int) -> None:
    inputs, outputs = activations(geometry, 4, seed)
    block = whole_block(geometry)
    assert split_blocks(geometry, geometry.in_channels) == (block,)
    assert block_bytes(geometry, block) == shift_bytes(geometry)
    sums, shifts = empty_block(geometry, block), empty_shifts(geometry)
    update_block(sums, inputs, outputs, geometry, block)
    update_shifts(shifts, inputs, outputs, geometry)
    found, wanted = finish_block(sums, geometry, block), finish(shifts, geometry).tensors()
    assert set(found) == set(FIELDS)
    assert all(torch.equal(found[name], wanted[name]) for name in FIELDS)


@given(geometry=wide_geometries(), channels=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_blocks_respect_the_bound_and_have_names_of_their_own(geometry: LayerGeometry, channels: int) -> None:
    blocks = split_blocks(geometry, channels)
    width = geometry.in_channels // geometry.groups
    assert len({block.name for block in blocks}) == len(blocks)
    assert all(set(block.name) <= set("grc0123456789-.") for block in blocks)
    for block in blocks:
        for start, stop in (block.rows, block.columns):
            assert (stop - start) * block.groups <= channels
        assert width > channels or block.rows == (0, width)
        shapes = block_shapes(geometry, block)
        assert block_bytes(geometry, block) == sum(
            8 * tensor.numel() for tensor in map(torch.zeros, shapes.values())
        )
        assert {n: tuple(t.shape) for n, t in empty_block(geometry, block).tensors().items()} == shapes
        assert block_from_json(json.loads(json.dumps(asdict(block)))) == block == pickle.loads(pickle.dumps(block))


def test_the_blocks_of_a_split_layer_come_diagonal_first() -> None:
    blocks = split_blocks(WIDE, 5)
    assert [(block.rows, block.columns) for block in blocks] == [
        ((0, 4), (0, 4)), ((4, 8), (4, 8)), ((8, 12), (8, 12)),
        ((0, 4), (4, 8)), ((0, 4), (8, 12)), ((4, 8), (8, 12)),
    ]  # fmt: skip
    assert blocks[3].name == "g0-1.r0-4.c4-8"
    assert [block.name for block in split_blocks(GROUPED, 8)] == ["g0-2.r0-4.c0-4", "g2-3.r0-4.c0-4"]
    assert len(split_blocks(GROUPED, 3)) == 3 * 3


def test_an_off_diagonal_block_is_smaller_than_the_gram_it_stands_for() -> None:
    geometry = convolution((2048, 64), (7, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    block = split_blocks(geometry, 256)[-1]
    assert not block.diagonal
    assert block_shapes(geometry, block) == {"products": (49, 256, 256)}  # 9 unshifted terms, 20 each way
    assert block_bytes(geometry, block) < 8 * 81 * 256 * 256


def test_blocks_need_no_outputs() -> None:
    inputs, outputs = activations(WIDE, 4)
    for block in split_blocks(WIDE, 5):
        with_outputs, without = empty_block(WIDE, block), empty_block(WIDE, block)
        update_block(with_outputs, inputs, outputs, WIDE, block)
        update_block(without, inputs, None, WIDE, block)
        assert torch.equal(
            finish_block(with_outputs, WIDE, block)["gram"], finish_block(without, WIDE, block)["gram"]
        )


@pytest.mark.parametrize("first_image", [0, 4])
def test_folds_of_blocks_are_blocks_of_the_folds_images(first_image: int) -> None:
    inputs, outputs = activations(GROUPED, 7)
    numbers = torch.arange(first_image, first_image + 7) % 3
    for block in split_blocks(GROUPED, 3):
        by_fold = empty_block_folds(GROUPED, block, 3)
        update_block_folds(by_fold, inputs, outputs, GROUPED, block, first_image, torch.float64)
        for fold, sums in enumerate(by_fold):
            wanted = empty_block(GROUPED, block)
            chosen = inputs[numbers == fold], outputs[numbers == fold]
            update_block(wanted, *chosen, GROUPED, block, product_dtype=torch.float64)
            for name, value in wanted.tensors().items():
                torch.testing.assert_close(sums.tensors()[name], value, rtol=1e-12, atol=1e-12)


def test_values_that_are_not_finite_are_refused_by_every_block_that_sees_them() -> None:
    inputs, outputs = activations(WIDE, 3)
    inputs[1, 6, 2, 2] = float("nan")
    for block in split_blocks(WIDE, 5):
        sees = any(start <= 6 < stop for start, stop in (block.rows, block.columns))
        if sees:
            with pytest.raises(NonFiniteError, match="layer"):
                update_block(empty_block(WIDE, block), inputs, outputs, WIDE, block)
        else:
            update_block(empty_block(WIDE, block), inputs, outputs, WIDE, block)


@pytest.mark.parametrize(
    ("groups", "rows", "columns"),
    [(1, (0, 0), (0, 0)), (1, (0, 4), (2, 6)), (1, (4, 8), (0, 4)), (2, (0, 2), (2, 4)), (0, (0, 4), (0, 4))],
    ids=("empty", "overlap", "below", "several groups", "no group"),
)
def test_ranges_that_are_no_block_are_refused(groups: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    with pytest.raises(StatisticsError, match="no block"):
        GramBlock(0, groups, rows, columns)


def test_blocks_sums_and_images_that_do_not_fit_are_refused() -> None:
    inputs, outputs = activations(WIDE, 3)
    block = split_blocks(WIDE, 5)[3]
    sums = empty_block(WIDE, block)
    with pytest.raises(StatisticsError, match="inside the Gram"):
        empty_block(WIDE, GramBlock(0, 1, (0, 4), (8, 13)))
    with pytest.raises(StatisticsError, match="inside the Gram"):
        empty_block(GROUPED, GramBlock(0, 2, (0, 2), (0, 2)))
    with pytest.raises(StatisticsError, match="another shape"):
        update_block(sums, inputs[:, :4], outputs, WIDE, block)
    with pytest.raises(StatisticsError, match="not those of block"):
        update_block(sums, inputs, outputs, WIDE, whole_block(WIDE))
    with pytest.raises(StatisticsError, match="cannot be merged"):
        merge_block(sums, empty_block(WIDE, whole_block(WIDE)))
    with pytest.raises(StatisticsError, match="not the sums of a block"):
        block_from_tensors({"gram": torch.zeros(1, 2, 2)})
    with pytest.raises(StatisticsError, match="double precision"):
        block_from_tensors({"products": torch.zeros(1, 2, 2)})
    with pytest.raises(StatisticsError, match="at least one channel"):
        split_blocks(WIDE, 0)
