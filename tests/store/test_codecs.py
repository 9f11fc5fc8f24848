"""Codecs by name: what parses, what is stored, what is lost and how it is said."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamsparse.errors import CorruptDataError, HalfOverflowError, UsageError
from streamsparse.store import Run
from streamsparse.store.codecs import (
    EXAMPLES,
    LOSSY_EXAMPLES,
    MANTISSA_BITS,
    compressors,
    loss,
    parse_codec,
    rounded,
)
from streamsparse.store.stream import CapturedLayer, StreamPlan
from tests.small import flip_bit, geometry_of

LAYER = replace(geometry_of(nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 6, 6)), layer="conv")
PLAN = StreamPlan("original", 0, 1, 0, 6, 6, "float16", "zstd:1", (CapturedLayer(LAYER),))
DTYPES = ("float16", "float32")
LOSSLESS = ("none", "zstd:1", "zstd:22", "gzip:9", "blosc:zlib:2:shuffle", "blosc:lz4hc:9", "blosc:blosclz")


def stored(path: Path, codec: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Values that were written under the codec, and what is read."""
    random = np.random.default_rng(3)
    plan = replace(PLAN, codec=codec, dtype=dtype)
    given_values = {
        ("conv", 0, side): random.standard_normal((6, *plan.layers[0].shape(side))).clip(0).astype(dtype)
        for side in ("input", "output")
    }
    Run.at(path).writer(plan).write(0, given_values, "digest")
    reader = Run.at(path).reader()
    return given_values["conv", 0, "input"], reader.read(reader.require_complete()[0], "conv", 0, "input")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_codecs_return_every_bit(tmp_path: Path, codec: str, dtype: str) -> None:
    given_values, found = stored(tmp_path, codec, dtype)
    assert np.array_equal(found, given_values)
    assert found.dtype == given_values.dtype
    assert loss(codec, dtype) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", EXAMPLES + LOSSY_EXAMPLES)
def test_a_flipped_bit_is_found_under_every_codec(tmp_path: Path, codec: str, dtype: str) -> None:
    stored(tmp_path, codec, dtype)
    flip_bit(next(file for file in tmp_path.rglob("conv@0/input/c/**/*") if file.is_file()))
    reader = Run.at(tmp_path).reader()
    with pytest.raises(CorruptDataError):
        reader.read(reader.batches()[0], "conv", 0, "input")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_bounded_said_and_readable_by_anyone(tmp_path: Path, dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given_values, found = stored(tmp_path, "bitround:5+zstd:3", dtype)
    assert not np.array_equal(found, given_values)
    assert np.abs(found.astype(float) - given_values.astype(float)).max() <= 2.0**-6 * np.abs(given_values).max()
    said = loss("bitround:5+zstd:3", dtype)
    assert said is not None
    assert "lossy" in said
    metadata = next(tmp_path.rglob("conv@0/input/zarr.json")).read_text()
    assert "numcodecs" not in metadata
    assert "bitround" in next(tmp_path.rglob("plan.json")).read_text()


@given(st.data(), st.sampled_from(DTYPES))
def test_rounding_keeps_the_bits_it_says(data: st.DataObject, dtype: str) -> None:
    bits = data.draw(st.integers(0, MANTISSA_BITS[dtype]))
    width: Literal[16, 32] = 16 if dtype == "float16" else 32
    value = data.draw(st.floats(-1e4, 1e4, width=width, allow_subnormal=False))
    values = np.array([[value]], dtype)
    found = rounded(values, f"bitround:{bits}+none")
    assert found.shape == (1, 1)
    assert abs(float(found[0, 0]) - value) <= 2.0 ** -(bits + 1) * abs(value)
    dropped = MANTISSA_BITS[dtype] - bits
    assert int(found.view(f"u{width // 8}")[0, 0]) % 2**dropped == 0
    assert np.array_equal(rounded(found, f"bitround:{bits}+zstd"), found)  # rounding again changes nothing


def test_all_bits_are_no_loss() -> None:
    values = np.random.default_rng(0).standard_normal(50).astype(np.float16)
    assert np.array_equal(rounded(values, "bitround:10+zstd"), values)
    assert loss("bitround:10+zstd", "float16") is None
    assert loss("bitround:10+zstd", "float32") is not None


def test_values_that_round_to_infinity_are_refused() -> None:
    with pytest.raises(HalfOverflowError) as raised:
        rounded(np.array([1, 65504], np.float16), "bitround:4+zstd")
    assert "float32" in str(raised.value.remedy)


@pytest.mark.parametrize(
    "codec",
    ["zstd:23", "zstd:0", "zstd:-1", "zstd:1:2", "zstd:", "zstd:²", "lzma", "lz4", "gzip:10", "blosc", "blosc:",
     "blosc:snappy", "blosc:lz4:x", "blosc:lz4:10", "blosc:lz4:shuffle:1", "blosc:lz4:1:shuffle:1", "none:1", "",
     "+", "bitround", "bitround:7", "bitround:+zstd", "bitround:24+zstd", "bitround:-1+zstd", "bitround:7+",
     "zstd+none", "bitround:7+bitround:7+zstd", "bitroundx:7+zstd:1", "ZSTD", " zstd"],
)  # fmt: skip
def test_what_does_not_parse_is_refused(codec: str) -> None:
    with pytest.raises(UsageError) as raised:
        compressors(codec)
    assert raised.value.got == codec
    assert raised.value.remedy


def test_more_bits_than_the_dtype_has_are_refused() -> None:
    assert parse_codec("bitround:11+zstd", "float32").keep_bits == 11
    with pytest.raises(UsageError) as raised:
        compressors("bitround:11+zstd", "float16")
    assert "10 bits" in str(raised.value.expected)
