"""Read weights from a file and load them strictly; no code in the file is ever run.

Files from safetensors or `torch.save`; the latter are read with `weights_only=True`, which refuses everything
but tensors and plain containers.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streamsparse.errors import WeightsError
from streamsparse.intake.specs import suggestion

# Where training scripts put the state_dict in what they save, in order of preference, and what wrappers prefix.
_NESTS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_SHOWN = 4


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    A state_dict inside a training checkpoint (under "state_dict", "model", ...) is found; names are as stored.

    Raises:
        WeightsError: missing, corrupt or empty file, or one that holds pickled objects.
    """
    file = Path(path)
    if not file.is_file():
        near = suggestion(file.name, [p.name for p in file.parent.iterdir()]) if file.parent.is_dir() else None
        got = "a directory" if file.is_dir() else "nothing"
        raise _error("There is no weights file.", "a .safetensors, .pt or .pth file", got, file, near)
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    tensors = _unnested(content)
    if not tensors:
        found = sorted(map(str, content))[:_SHOWN] if isinstance(content, Mapping) else type(content).__name__
        raise _error("The file holds no state_dict.", f"tensors by name, or under {_NESTS}", found, file)
    return tensors


def load_weights(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Load a file into `model`: every tensor, with the right name and shape.

    Prefixes of wrappers (`module.`, `_orig_mod.`) are removed, floating-point dtypes are converted to the
    model's, and missing BatchNorm batch counters are left at zero.

    Returns:
        one sentence for each such liberty taken, to be shown to the user.

    Raises:
        WeightsError: as `read_weights`, or tensors that do not fit; the model is unchanged then.
    """
    notes: list[str] = []
    own = model.state_dict()
    tensors = _without_prefix(read_weights(path), own, notes)
    tensors |= _tied(model, tensors)
    absent = [name for name in own if name not in tensors]
    if absent and all(name.endswith("num_batches_tracked") for name in absent):
        notes.append(f"{len(absent)} BatchNorm batch counters are not in the file; they do not change inference.")
        tensors |= {name: own[name] for name in absent}
    _check_names(own, tensors, path)
    for name, tensor in own.items():
        _check_tensor(name, tensor, tensors[name], path)
    converted = {name: (tensors[name].dtype, t.dtype) for name, t in own.items() if t.dtype != tensors[name].dtype}
    for stored, wanted in sorted(set(converted.values()), key=str):
        notes.append(f"{list(converted.values()).count((stored, wanted))} tensors converted: {stored} to {wanted}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return tuple(notes)


def _read_safetensors(file: Path) -> Any:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise _error("The weights file is corrupt.", "a whole safetensors file", error, file) from error


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        remedy = "Save model.state_dict() instead of the model, or convert the file to safetensors."
        got = str(error).splitlines()[0]
        raise _error("The weights file holds objects, or is corrupt.", "tensors only", got, file, remedy) from error
    except Exception as error:  # a zip, pickle or storage problem each raise their own kind
        raise _error("The weights file is corrupt.", "a file from torch.save", error, file) from error


def _unnested(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(name): value for name, value in content.items()}
    return next((found for nest in _NESTS if (found := _unnested(content.get(nest)))), {})


def _without_prefix(tensors: dict[str, Tensor], own: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Remove what a wrapper put before every name, as long as the names do not fit the model."""
    while not any(name in own for name in tensors):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"The prefix {prefix!r} was removed from every name.")
    return tensors


def _tied(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names that a file leaves out because the model shares their tensor with a name that is there."""
    live = model.state_dict(keep_vars=True)
    stored = {id(tensor): tensors[name] for name, tensor in live.items() if name in tensors}
    return {n: stored[id(t)] for n, t in live.items() if n not in tensors and id(t) in stored}


def _check_names(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    if not missing and not unexpected:
        return
    lists = ", ".join(missing[:_SHOWN]) or "none", ", ".join(unexpected[:_SHOWN]) or "none"
    remedy = "Give the model that the file was trained with, with the same options."
    if missing and unexpected:
        remedy += f" For {unexpected[0]!r}: {suggestion(unexpected[0], missing)}"
    raise _error(
        "The weights are not those of this model.",
        f"the model's {len(own)} tensors",
        f"{len(missing)} missing ({lists[0]}), {len(unexpected)} unexpected ({lists[1]})",
        path,
        remedy,
    )


def _check_tensor(name: str, own: Tensor, tensor: Tensor, path: str | Path) -> None:
    where = f"{name} in {path}"
    if tensor.shape != own.shape:
        remedy = "Give the model the options that the weights were trained with, such as num_classes."
        raise _error(
            "A tensor has another shape than the model's.", tuple(own.shape), tuple(tensor.shape), where, remedy
        )
    if tensor.dtype != own.dtype and not (tensor.is_floating_point() and own.is_floating_point()):
        raise _error("A tensor has another dtype than the model's.", own.dtype, tensor.dtype, where)
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        remedy = "The training diverged, or the file is damaged: use an earlier checkpoint."
        raise _error("The weights hold NaN or infinity.", "finite values", "NaN or infinity", where, remedy)


def _error(summary: str, expected: object, got: object, where: object, remedy: str | None = None) -> WeightsError:
    return WeightsError(
        summary,
        expected=expected,
        got=got,
        where=where,
        remedy=remedy or "Check the path and copy the file again.",
    )
