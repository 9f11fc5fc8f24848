"""A checkpoint: `model.safetensors` and `config.json`, no code, no pickle.

`encode_checkpoint` and `decode_checkpoint` work on bytes, so that any store can hold the files; `load` reads them
from a directory. Everything is verified before the model is touched, and the loaded model computes bit for bit
what the saved one does (in the same memory format: tensors are stored and loaded contiguous).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from streamsparse.errors import CheckpointError, WeightsError
from streamsparse.network.resize import channel_groups, fit_to_tensors, stored_tensors
from streamsparse.network.weights import weights_digest
from streamsparse.write.description import CONFIG_FILE, CheckpointConfig, Description, config_error
from streamsparse.write.directory import read
from streamsparse.write.safetensors_file import (
    WEIGHTS_FILE,
    decode_tensors,
    encode_tensors,
    form_of,
)


def encode_checkpoint(model: nn.Module, config: CheckpointConfig | None = None) -> dict[str, bytes]:
    """The files of a checkpoint of `model`, by name.

    Args:
        model: any model; tied parameters are stored once.
        config: what is known about its origin.

    Raises:
        CheckpointError: a tensor cannot be stored, the provenance is not plain JSON, or the sizes are not the
            model's.
        WeightsError: the model's `state_dict` holds more than parameters and buffers.
    """
    own = stored_tensors(model)
    first: dict[int, str] = {}
    aliases = {
        name: stored for name, tensor in own.items() if (stored := first.setdefault(id(tensor), name)) != name
    }
    tensors = {name: tensor for name, tensor in own.items() if name not in aliases}
    weights = encode_tensors(tensors)
    config = config or CheckpointConfig()
    _check_sizes(model, config)
    description = Description(
        class_name=f"{type(model).__module__}.{type(model).__qualname__}",
        tensors={name: form_of(tensor) for name, tensor in tensors.items()},
        aliases=aliases,
        groups=channel_groups(model),
        file_digest=hashlib.sha256(weights).hexdigest(),
        weights_digest=weights_digest(own),
        finite=all(_is_finite(tensor) for tensor in tensors.values()),
        versions={"streamsparse": _own_version(), "torch": str(torch.__version__)},
        config=replace(config, created=config.created or datetime.now(UTC).isoformat(timespec="seconds")),
    )
    return {WEIGHTS_FILE: weights, CONFIG_FILE: description.to_bytes()}


def decode_checkpoint(files: Mapping[str, bytes], model: nn.Module) -> nn.Module:
    """Load a checkpoint's files into a fresh original; the same model is returned, resized.

    Args:
        files: at least the two files, as `encode_checkpoint` gives them.
        model: from the original constructor, with the original widths and the checkpoint's dtype.

    Raises:
        CheckpointError: a file is missing, damaged, tampered with, of another version or of another
            architecture. The model is unchanged then.
    """
    description, tensors = verify_checkpoint(files)
    try:
        fit_to_tensors(model, _whole(description, tensors), description.groups, description.config.sizes)
    except WeightsError as error:
        raise CheckpointError(
            f"The checkpoint does not fit the model: {error.summary}",
            expected=error.expected,
            got=error.got,
            where=f"{error.where or WEIGHTS_FILE}; checkpoint of {description.class_name}, "
            f"model {type(model).__module__}.{type(model).__qualname__}",
            remedy=error.remedy,
        ) from error
    _tie(model, description.aliases)
    return model


def verify_checkpoint(files: Mapping[str, bytes]) -> tuple[Description, dict[str, Tensor]]:
    """Check the files against each other without a model.

    Returns:
        the description and the stored tensors, each once.

    Raises:
        CheckpointError: as `decode_checkpoint`, except for the architecture.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise CheckpointError(
                "A file of the checkpoint is missing.",
                expected=f"{WEIGHTS_FILE} and {CONFIG_FILE}",
                got=sorted(files),
                where=name,
                remedy="Copy the whole checkpoint directory.",
            )
    description = Description.from_bytes(files[CONFIG_FILE])
    _check_digest(hashlib.sha256(files[WEIGHTS_FILE]).hexdigest(), description.file_digest, "sha256")
    tensors = decode_tensors(files[WEIGHTS_FILE])
    _check_forms(description, tensors)
    _check_digest(weights_digest(_whole(description, tensors)), description.weights_digest, "weights digest")
    return description, tensors


def load(path: str | Path, model: nn.Module, *, digest: str | None = None) -> nn.Module:
    """Load the checkpoint directory `path` into a fresh original; the same model is returned, resized.

    The model keeps its mode (training or evaluation) and its device. Make optimizers after the call.

    Args:
        path: a directory with `model.safetensors` and `config.json`.
        model: from the original constructor, with the original widths.
        digest: the weights digest that the checkpoint must have, from a source you trust; None: any.

    Raises:
        CheckpointError: as `decode_checkpoint`, or a file that leads out of the directory.
        StorageError: the files cannot be read.
    """
    files = read(Path(path))
    if digest is not None and CONFIG_FILE in files:
        _check_digest(Description.from_bytes(files[CONFIG_FILE]).weights_digest, digest, "weights digest")
    return decode_checkpoint(files, model)


def _whole(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every name of the model's `state_dict`, tied ones too."""
    return {**tensors, **{alias: tensors[stored] for alias, stored in description.aliases.items()}}


def _check_sizes(model: nn.Module, config: CheckpointConfig) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, values in config.sizes.items():
        for name, size in values.items():
            found = vars(modules[path]).get(name) if path in modules else None
            if found != size:
                raise config_error("sizes", f"{path}.{name} = {found}, as in the model", size)


def _check_digest(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise CheckpointError(
            "The checkpoint's tensors are not those that were written.",
            expected=f"{what} {expected}",
            got=found,
            where=WEIGHTS_FILE,
            remedy="The files were damaged, mixed or tampered with: copy or write the checkpoint again.",
        )


def _check_forms(description: Description, tensors: Mapping[str, Tensor]) -> None:
    found = {name: form_of(tensor) for name, tensor in tensors.items()}
    differing = [
        name
        for name in sorted(found.keys() | description.tensors)
        if found.get(name) != description.tensors.get(name)
    ]
    if differing:
        raise CheckpointError(
            "The two files of the checkpoint describe different tensors.",
            expected=description.tensors.get(differing[0], "no such tensor"),
            got=found.get(differing[0], "no such tensor"),
            where=f"{differing[0]} and {len(differing) - 1} more",
            remedy="Copy both files from one checkpoint.",
        )
    for alias, stored in description.aliases.items():
        if alias in found or stored not in found:
            raise CheckpointError(
                "A tied name does not lead to a stored tensor.",
                expected="a new name for a stored tensor",
                got=f"{alias} for {stored}",
                where=CONFIG_FILE,
                remedy="Write the checkpoint again; do not edit its files by hand.",
            )
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if description.finite and broken:
        raise CheckpointError(
            "A tensor holds NaN or infinity, although the checkpoint is said to be finite.",
            expected="finite values",
            got="NaN or infinity",
            where=broken[0],
            remedy="Write the checkpoint again; do not edit its files by hand.",
        )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) if tensor.is_floating_point() or tensor.is_complex() else True


def _tie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Let tied names share one parameter again, where the constructor does not do it."""
    own = stored_tensors(model)
    for alias, stored in aliases.items():
        path, _, leaf = alias.rpartition(".")
        shared = own[stored]
        if own[alias] is not shared and isinstance(shared, nn.Parameter):
            model.get_submodule(path)._parameters[leaf] = shared


def _own_version() -> str:
    try:
        return version("streamsparse")
    except PackageNotFoundError:
        return "unknown"
