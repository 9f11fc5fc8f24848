"""Codecs by name: lossless unless the name says otherwise, a CRC-32C checksum always last.

    CODEC       = [bitround:BITS+]COMPRESSOR
    COMPRESSOR  = zstd[:LEVEL] | gzip[:LEVEL] | blosc:NAME[:LEVEL][:SHUFFLE] | none

`bitround:BITS` keeps BITS bits of each value's mantissa (M. Klöwer et al., "Compressing atmospheric data into its
real information content", Nature Computational Science 2021), a relative error of at most 2^-(BITS+1). It rounds
before the array is written, so the stored arrays need no codec beyond the Zarr v3 specification and any reader
understands them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numcodecs import BitRound
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from streamsparse.errors import HalfOverflowError, UsageError

DEFAULT_CODEC = "zstd:1"
EXAMPLES = ("zstd:1", "zstd:9", "gzip:1", "blosc:lz4", "blosc:zstd:3:bitshuffle", "none")
LOSSY_EXAMPLES = ("bitround:7+zstd:1",)
GRAMMAR = "[bitround:BITS+] zstd[:LEVEL] | gzip[:LEVEL] | blosc:NAME[:LEVEL][:SHUFFLE] | none"
MANTISSA_BITS = {"float16": 10, "float32": 23}
BLOSC_NAMES = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
_LEVELS = {"zstd": 22, "gzip": 9, "blosc": 9}


@dataclass(frozen=True)
class Codec:
    """A codec, parsed.

    Attributes:
        name: as given.
        keep_bits: of the mantissa; None keeps the values as they are.
        compressor: "zstd", "gzip", "blosc" or "none".
        level: of the compressor; 0 for none.
        blosc_name, shuffle: of blosc, else "".
    """

    name: str
    keep_bits: int | None
    compressor: str
    level: int = 0
    blosc_name: str = ""
    shuffle: str = ""


def parse_codec(name: str, dtype: str | None = None) -> Codec:
    """The codec of this name.

    Args:
        name: see the grammar above; levels are 1 where they are left out.
        dtype: of the arrays, "float16" or "float32", which bounds BITS; None leaves that unchecked.

    Raises:
        UsageError: it does not parse, or keeps more bits than the dtype has.
    """
    text, keep_bits = name, None
    if text.partition(":")[0] == "bitround":
        bits_text, plus, text = text.removeprefix("bitround:").partition("+")
        keep_bits = _number(bits_text, 0, max(MANTISSA_BITS.values()), name)
        if not plus:
            _refuse(name, "name a compressor as well: bitround alone saves nothing")
        if dtype is not None and keep_bits > MANTISSA_BITS[dtype]:
            remedy = f"give bitround:BITS with BITS up to {MANTISSA_BITS[dtype]}, or another dtype"
            _refuse(name, remedy, f"at most {MANTISSA_BITS[dtype]} bits of mantissa in {dtype}")
    compressor, *options = text.split(":")
    if compressor == "blosc":
        return _blosc(name, keep_bits, options)
    if compressor == "none" and not options:
        return Codec(name, keep_bits, compressor)
    if compressor not in ("zstd", "gzip") or len(options) > 1:
        _refuse(name, "lz4 goes by the name blosc:lz4" if compressor == "lz4" else "choose one of these")
    return Codec(name, keep_bits, compressor, _number(options[0] if options else "1", 1, _LEVELS[compressor], name))


def compressors(codec: str, dtype: str | None = None) -> list[Any]:
    """The chain of Zarr codecs from bytes to bytes, checksum last.

    Raises:
        UsageError: see `parse_codec`.
    """
    parsed = parse_codec(codec, dtype)
    chain: list[Any] = []
    if parsed.compressor == "zstd":
        chain = [ZstdCodec(level=parsed.level)]
    elif parsed.compressor == "gzip":
        chain = [GzipCodec(level=parsed.level)]
    elif parsed.compressor == "blosc":  # the size of a value is left open: Zarr fills in the array's
        chain = [BloscCodec(cname=parsed.blosc_name, clevel=parsed.level, shuffle=parsed.shuffle)]  # type: ignore[arg-type]
    return [*chain, Crc32cCodec()]


def rounded(values: np.ndarray, codec: str) -> np.ndarray:
    """What the codec's filter makes of finite values before they are stored; the values themselves without one.

    Args:
        values: float16 or float32, any shape; not changed.
        codec: by name.

    Raises:
        HalfOverflowError: a value is so large that it rounds to infinity.
        UsageError: see `parse_codec`.
    """
    keep_bits = parse_codec(codec, str(values.dtype)).keep_bits
    if keep_bits is None:
        return values
    found: np.ndarray = np.asarray(BitRound(keep_bits).encode(np.ascontiguousarray(values))).view(values.dtype)
    found = found.reshape(values.shape)
    if not np.isfinite(found).all() and np.isfinite(values).all():
        raise HalfOverflowError(
            f"Values do not fit into {values.dtype} when they are rounded to {keep_bits} bits of mantissa.",
            expected=f"magnitudes below {np.finfo(values.dtype).max}, with room to round up",
            got=np.abs(values).max(),
            where=codec,
            remedy="capture with --dtype float32, keep more bits, or leave out bitround",
        )
    return found


def loss(codec: str, dtype: str) -> str | None:
    """What the codec takes from stored values, in one sentence; None if it is lossless for this dtype."""
    keep_bits = parse_codec(codec, dtype).keep_bits
    if keep_bits is None or keep_bits == MANTISSA_BITS[dtype]:
        return None
    return (
        f"codec {codec} is lossy: {keep_bits} of {MANTISSA_BITS[dtype]} bits of each {dtype} mantissa are kept, "
        f"a relative error of up to {2.0 ** -(keep_bits + 1):.1g}"
    )


def _blosc(name: str, keep_bits: int | None, options: list[str]) -> Codec:
    """`NAME[:LEVEL][:SHUFFLE]`."""
    rest = options[1:]
    level = _number(rest.pop(0), 1, _LEVELS["blosc"], name) if rest and rest[0] not in SHUFFLES else 1
    shuffle = rest.pop(0) if rest and rest[0] in SHUFFLES else "noshuffle"
    if not options or options[0] not in BLOSC_NAMES or rest:
        _refuse(name, f"NAME is one of {', '.join(BLOSC_NAMES)}; SHUFFLE is one of {', '.join(SHUFFLES)}")
    return Codec(name, keep_bits, "blosc", level, options[0], shuffle)


def _number(text: str, least: int, most: int, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        _refuse(name, f"give a whole number from {least} to {most} where it says '{text}'")
    return int(text)


def _refuse(name: str, remedy: str, expected: str | None = None) -> NoReturn:
    shown = expected or f"{GRAMMAR}; such as {' | '.join(EXAMPLES + LOSSY_EXAMPLES)}"
    raise UsageError("Unknown codec.", expected=shown, got=name, where="--codec", remedy=remedy)
