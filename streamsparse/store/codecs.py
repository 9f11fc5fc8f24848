"""Codecs by name. A CRC-32C checksum is always the last step, so a flipped bit or a truncated file is found."""

from __future__ import annotations

from typing import Any

from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from streamsparse.errors import UsageError

DEFAULT_CODEC = "zstd:1"
EXAMPLES = ("zstd:1", "zstd:9", "blosc:lz4", "none")


def compressors(codec: str) -> list[Any]:
    """The compressor chain for `zstd:LEVEL`, `blosc:NAME` or `none`, all lossless, checksum last.

    Raises:
        UsageError: an unknown name or level.
    """
    name, _, option = codec.partition(":")
    try:
        if name == "none" and not option:
            return [Crc32cCodec()]
        if name == "zstd":
            return [ZstdCodec(level=int(option or 1)), Crc32cCodec()]
        if name == "blosc":
            return [BloscCodec(cname=option or "lz4", clevel=1, shuffle="noshuffle"), Crc32cCodec()]  # type: ignore[arg-type]
    except (ValueError, TypeError):
        pass
    raise UsageError("Unknown codec.", expected=" | ".join(EXAMPLES), got=codec, remedy="choose one of these")
