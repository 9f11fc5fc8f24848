"""`model.safetensors`: written from tensors, and checked byte by byte before it is parsed.

The layout is 8 bytes of header length (little-endian), a JSON header that gives dtype, shape and offsets of every
tensor, and the tensors' bytes one after the other without gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from streamsparse.errors import CheckpointError
from streamsparse.write.description import TensorForm
from streamsparse.write.strict_json import strict_json

WEIGHTS_FILE = "model.safetensors"
HEADER_LIMIT_BYTES = 64 * 2**20

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def form_of(tensor: Tensor) -> TensorForm:
    """dtype and shape as `config.json` gives them."""
    return TensorForm(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The file's bytes.

    Raises:
        CheckpointError: a tensor's dtype or layout has no place in the format.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                "A tensor cannot be stored in a checkpoint.",
                expected=f"dense values of {', '.join(str(dtype) for dtype in DTYPES.values())}",
                got=f"{tensor.dtype}, {tensor.layout}, on {tensor.device}",
                where=name,
                remedy="Convert the model to a plain dtype before writing it.",
            )
    return bytes(serialise({name: _plain(tensor) for name, tensor in tensors.items()}))


def decode_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own.

    Raises:
        CheckpointError: the header is hostile or damaged, or does not describe the bytes exactly.
    """
    check_header(content)
    try:
        tensors: dict[str, Tensor] = parse(content)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged("a safetensors file", error) from error
    return tensors


def check_header(content: bytes) -> None:
    """Check that the header describes the bytes of the file exactly, before any parser sees them.

    Raises:
        CheckpointError: too long, not JSON, unknown dtype, negative or huge sizes, gaps or overlaps.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(HEADER_LIMIT_BYTES, len(content) - 8):
        limit = min(HEADER_LIMIT_BYTES, max(len(content) - 8, 0))
        raise _damaged(f"a header of at most {limit} bytes", f"{length} bytes announced in {len(content)}")
    header = strict_json(content[8 : 8 + length], f"header of {WEIGHTS_FILE}", HEADER_LIMIT_BYTES)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged("text metadata", type(metadata).__name__)
    spans = sorted(_span(name, entry) for name, entry in header.items())
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise _damaged(f"offset {position}", f"offset {begin}", name)
        position = end
    if position != len(content) - 8 - length:
        raise _damaged(f"{position} bytes of tensors", f"{len(content) - 8 - length} bytes")


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged("dtype, shape and data_offsets", repr(entry)[:80], name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _damaged(f"one of {', '.join(DTYPES)}", repr(dtype)[:80], name)
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise _damaged("a shape and two offsets", f"{repr(shape)[:80]}, {repr(offsets)[:80]}", name)
    begin, end = offsets
    expected = prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise _damaged(f"{expected} bytes for shape {shape}", f"{end - begin} bytes", name)
    return begin, end, name


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous on the CPU, in a storage of its own size that no other tensor shares."""
    plain = tensor.detach().cpu().contiguous()
    if plain.untyped_storage().nbytes() != plain.numel() * plain.element_size():
        plain = plain.clone()
    return plain


def _damaged(expected: object, got: object, name: str | None = None) -> CheckpointError:
    return CheckpointError(
        "The checkpoint's tensors cannot be read.",
        expected=expected,
        got=got,
        where=WEIGHTS_FILE if name is None else f"{WEIGHTS_FILE}, {name!r}",
        remedy="The file is damaged or was tampered with: copy or write it again.",
    )
