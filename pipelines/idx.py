"""IDX files: the format of MNIST, Fashion-MNIST, EMNIST and KMNIST.

    magic number   2 zero bytes, element type (8: unsigned byte), number of dimensions
    sizes          one big-endian unsigned 32-bit integer per dimension
    elements       row-major, nothing after them

A file may be raw or wrapped in gzip (`.gz`) or xz (`.xz`); its suffix says which.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamsparse.errors import DataError

UNSIGNED_BYTE = 0x08
FETCH_AGAIN = "get the file again: it is damaged, or it is not an IDX file"


class ReadableFile(Protocol):
    """A path on disk or a resource inside an installed package."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


def parse_idx(content: bytes, dimensions: int, where: str) -> NDArray[np.uint8]:
    """Parse an uncompressed IDX file of unsigned bytes.

    Args:
        content: the whole file.
        dimensions: how many the array must have (images 3, labels 1).
        where: the file's name, for errors.

    Returns:
        A read-only uint8 array with `dimensions` dimensions; it shares the memory of `content`.

    Raises:
        DataError: other element type, other number of dimensions, truncated, or bytes after the end.
    """
    header_bytes = 4 * (1 + dimensions)
    expected_magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if content[:4] != expected_magic:
        raise DataError(
            "the magic number of an IDX file is wrong",
            expected=f"{expected_magic.hex()} (unsigned bytes, {dimensions} dimensions)",
            got=content[:4].hex() or "an empty file",
            where=where,
            remedy=FETCH_AGAIN,
        )
    if len(content) < header_bytes:
        raise _wrong_length(header_bytes, len(content), where)
    shape = struct.unpack(f">{dimensions}I", content[4:header_bytes])
    if len(content) != header_bytes + prod(shape):
        raise _wrong_length(header_bytes + prod(shape), len(content), where)
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def format_idx(array: NDArray[np.uint8]) -> bytes:
    """The IDX file of a uint8 array; the inverse of `parse_idx`."""
    header = bytes([0, 0, UNSIGNED_BYTE, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def read_idx(file: ReadableFile, dimensions: int) -> NDArray[np.uint8]:
    """Read a raw, gzip or xz IDX file; see `parse_idx`.

    Raises:
        DataError: the file is missing, cannot be decompressed, or `parse_idx` refuses it.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            "a data file cannot be read",
            got=error.strerror or type(error).__name__,
            where=file,
            remedy="check that the file is there and may be read",
        ) from error
    return parse_idx(_decompress(content, file), dimensions, str(file))


def _decompress(content: bytes, file: ReadableFile) -> bytes:
    try:
        if file.name.endswith(".gz"):
            return gzip.decompress(content)
        if file.name.endswith(".xz"):
            return lzma.decompress(content, format=lzma.FORMAT_XZ)
    except (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError) as error:
        raise DataError(
            "a compressed data file is corrupt or truncated", got=error, where=file, remedy=FETCH_AGAIN
        ) from error
    return content


def _wrong_length(expected: int, got: int, where: str) -> DataError:
    return DataError(
        "an IDX file is truncated or has bytes after its end",
        expected=f"{expected} bytes",
        got=f"{got} bytes",
        where=where,
        remedy=FETCH_AGAIN,
    )
