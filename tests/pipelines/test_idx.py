"""The IDX reader: a round trip of every array, and a refusal of everything that is not one whole file."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from numpy.typing import NDArray

from pipelines.idx import format_idx, parse_idx, read_idx
from streamsparse.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
BYTE_ARRAYS = hypothesis_numpy.arrays(
    np.uint8, hypothesis_numpy.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
)


@given(BYTE_ARRAYS)
def test_what_is_written_is_read(array: NDArray[np.uint8]) -> None:
    read = parse_idx(format_idx(array), array.ndim, "memory")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@given(BYTE_ARRAYS, st.data())
def test_every_truncation_is_refused(array: NDArray[np.uint8], data: st.DataObject) -> None:
    whole = format_idx(array)
    kept = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DataError):
        parse_idx(whole[:kept], array.ndim, "memory")


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(DataError, match="bytes after its end") as caught:
        parse_idx(format_idx(IMAGES) + b"\0", 3, "images")
    assert caught.value.expected == "40 bytes"
    assert caught.value.got == "41 bytes"
    assert caught.value.where == "images"


@pytest.mark.parametrize(
    ("position", "value"), [(0, 1), (2, 0x0D), (3, 1)], ids=["not zero", "float elements", "labels for images"]
)
def test_another_magic_number_is_refused(position: int, value: int) -> None:
    content = bytearray(format_idx(IMAGES))
    content[position] = value
    with pytest.raises(DataError, match="magic number"):
        parse_idx(bytes(content), 3, "images")


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_wrappers(tmp_path: Path, suffix: str) -> None:
    content = format_idx(IMAGES)
    wrapped = {"": content, ".gz": gzip.compress(content), ".xz": lzma.compress(content)}[suffix]
    path = tmp_path / f"images{suffix}"
    path.write_bytes(wrapped)
    np.testing.assert_array_equal(read_idx(path, 3), IMAGES)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "not compressed", "empty"])
def test_damaged_wrappers_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = (gzip.compress if suffix == ".gz" else lzma.compress)(format_idx(IMAGES))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    content = {
        "truncated": whole[:-5],
        "bit flipped": bytes(flipped),
        "not compressed": format_idx(IMAGES),
        "empty": b"",
    }[damage]
    path = tmp_path / f"images{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, 3)
    assert caught.value.where == str(path)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_idx(tmp_path / "absent", 1)
    assert caught.value.where == str(tmp_path / "absent")
