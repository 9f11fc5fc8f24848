"""A model's weights as bytes and as an identity: safetensors, never pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode
from safetensors.torch import save as encode
from torch import Tensor, nn

from streamsparse.errors import WeightsError
from streamsparse.network.resize import fit_to_tensors, stored_tensors


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values in sorted order, whatever file they come from."""
    identity = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        identity.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        identity.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return identity.hexdigest()


def weights_to_bytes(model: nn.Module) -> bytes:
    """Parameters and persistent buffers as a safetensors file; tied tensors are written under every name."""
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in stored_tensors(model).items()}
    return encode(copies)


def restore_weights(model: nn.Module, data: bytes, *, where: str) -> nn.Module:
    """Load the bytes of `weights_to_bytes` strictly; the same model is returned.

    Raises:
        WeightsError: the bytes are damaged or belong to another architecture.
    """
    try:
        tensors = decode(data)
    except SafetensorError as error:
        raise WeightsError(
            "The weights are damaged.", expected="a safetensors file", got=str(error), where=where,
            remedy="restore the file from a copy",
        ) from error  # fmt: skip
    return fit_to_tensors(model, tensors)
