"""Resize a freshly built original to the shapes of a pruned model's tensors, and load them strictly.

A checkpoint holds tensors, not code. The original constructor gives the structure; every width follows from the
shapes of the tensors. Only the number of groups of a grouped convolution or of a GroupNorm can be ambiguous (8
groups of 2 channels or 4 groups of 4): it travels beside the tensors, see `channel_groups`.

Everything is checked before anything is changed: an error leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from streamsparse.errors import WeightsError
from streamsparse.network.widths import Attributes, checked_sizes, width_attributes

NAMES_SHOWN = 4


def fit_to_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    groups: Mapping[str, int] | None = None,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
) -> nn.Module:
    """Cut `model` to the shapes of `tensors` and load them; the same model is returned.

    Parameters keep `requires_grad`, device and sharing (tied parameters stay tied); values are copied. The
    parameters are replaced by new objects, so an optimizer must be made after the call.

    Args:
        model: a model from the original constructor, with the original widths.
        tensors: one tensor per name of `model.state_dict()`, each dimension at most the original's, same dtype.
        groups: number of groups by module path, for every convolution and GroupNorm that has more than one, as
            `channel_groups` of the pruned model gives it; absent layers have one. None: inferred where the
            shapes leave no choice.
        sizes: numbers in modules that follow from no shape (the width by which a block splits), by module path
            and attribute, as `size_attributes` gives them.

    Raises:
        WeightsError: names, ranks, shapes or dtypes do not fit the model, groups are ambiguous, or sizes belong
            to no attribute. The model is unchanged then.
    """
    own = stored_tensors(model)
    _check_names(own, tensors)
    for name, original in own.items():
        _check_tensor(name, original, tensors[name])
    _check_sharing(own, tensors)
    attributes = _all_attributes(model, tensors, groups) + checked_sizes(model, sizes or {})
    replacements = _replacements(own, tensors)
    _apply(model, replacements, attributes)
    return model


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by `state_dict` name, the live objects, tied ones under every name.

    Raises:
        WeightsError: the model's `state_dict` holds something else (extra state, renamed entries).
    """
    own = {_join(path, leaf): tensor for path, module in _modules(model) for leaf, tensor in _leaves(module)}
    unknown = set(own) ^ set(model.state_dict())
    if unknown:
        raise WeightsError(
            "The model's state_dict() is not its parameters and persistent buffers.",
            expected="plain parameters and buffers",
            got=f"entries that differ: {_listed(sorted(unknown))}",
            where=type(model).__qualname__,
            remedy="Remove state_dict hooks and extra state, or undo torch.compile and DataParallel wrapping.",
        )
    return own


def channel_groups(model: nn.Module) -> dict[str, int]:
    """Number of groups of every convolution and GroupNorm with more than one, by module path."""
    counts: dict[str, int] = {}
    for path, module in _modules(model):
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
            counts[path] = module.groups
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            counts[path] = module.num_groups
    return counts


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every path, shared modules too, as `state_dict` names them."""
    return iter(model.named_modules(remove_duplicate=False))


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _leaves(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for leaf, parameter in module._parameters.items():
        if parameter is not None:
            yield leaf, parameter
    for leaf, buffer in module._buffers.items():
        if buffer is not None and leaf not in module._non_persistent_buffers_set:
            yield leaf, buffer


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _check_names(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    if not missing and not unexpected:
        return
    parts = [("missing", missing), ("unexpected", unexpected)]
    near = get_close_matches(unexpected[0], missing, 1) if unexpected and missing else []
    hint = f" {unexpected[0]!r} looks like {near[0]!r}." if near else ""
    raise WeightsError(
        "The tensors are not those of this architecture.",
        expected=f"{len(own)} tensors",
        got=f"{len(tensors)} tensors; " + "; ".join(f"{label}: {_listed(n)}" for label, n in parts if n),
        remedy="Build the model with the constructor that the tensors come from." + hint,
    )


def _check_tensor(name: str, original: Tensor, tensor: Tensor) -> None:
    if tensor.dtype != original.dtype:
        raise WeightsError(
            "A tensor has another dtype than the model's.",
            expected=original.dtype,
            got=tensor.dtype,
            where=name,
            remedy=f"Convert the fresh model first, for example model.to({tensor.dtype}).",
        )
    fits = tensor.dim() == original.dim() and all(
        cut == full or 0 < cut < full for cut, full in zip(tensor.shape, original.shape, strict=True)
    )
    if not fits:
        raise WeightsError(
            "A tensor does not fit the original's.",
            expected=f"{original.dim()} dimensions, each from 1 to {tuple(original.shape)}",
            got=tuple(tensor.shape),
            where=name,
            remedy="Build the unpruned original with the constructor and arguments the tensors come from.",
        )


def _check_sharing(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Names that share one parameter in the model must carry the same values."""
    first: dict[int, str] = {}
    for name, original in own.items():
        other = first.setdefault(id(original), name)
        if other != name and not _identical(tensors[other], tensors[name]):
            raise WeightsError(
                "Two names share one parameter in the model but have different tensors.",
                expected=f"equal tensors for {other} and {name}",
                got="different values or shapes",
                where=name,
                remedy="Build the model without sharing, or check that the tensors belong to it.",
            )


def _identical(left: Tensor, right: Tensor) -> bool:
    if left is right:
        return True
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    # compared as bytes: NaN is equal to itself here
    return torch.equal(*(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (left, right)))


def _all_attributes(
    model: nn.Module, tensors: Mapping[str, Tensor], groups: Mapping[str, int] | None
) -> list[tuple[nn.Module, Attributes]]:
    original = channel_groups(model)
    _check_groups(original, groups or {})
    plan: list[tuple[nn.Module, Attributes]] = []
    for path, module in _modules(model):
        leaves = dict(_leaves(module))
        shapes = {leaf: tuple(tensors[_join(path, leaf)].shape) for leaf in leaves}
        changed = any(shapes[leaf] != tuple(tensor.shape) for leaf, tensor in leaves.items())
        declared = None if groups is None else groups.get(path, 1)
        if changed:
            plan.append((module, width_attributes(path, module, shapes, declared)))
        elif declared is not None and declared != original.get(path, 1):
            raise _groups_error(f"{original[path]} groups, as the shapes are the original's", declared, path)
    return plan


def _check_groups(original: Mapping[str, int], declared: Mapping[str, int]) -> None:
    for path, count in declared.items():
        if not 1 <= count <= original.get(path, 1):
            expected = f"1 to {original[path]} groups" if path in original else "a grouped layer of the model"
            raise _groups_error(expected, count, path)


def _groups_error(expected: str, got: int, path: str) -> WeightsError:
    return WeightsError(
        "A number of groups does not fit the original.",
        expected=expected,
        got=got,
        where=path,
        remedy="Pass all of channel_groups(model that the tensors come from); absent layers have one.",
    )


def _replacements(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New parameters and buffers by name; one object for all names that share one now."""
    fresh: dict[int, Tensor] = {}
    for name, original in own.items():
        if id(original) in fresh:
            continue
        device = tensors[name].device if original.is_meta else original.device
        value = tensors[name].detach().to(device, copy=True)
        if isinstance(original, nn.Parameter):
            value = nn.Parameter(value, requires_grad=original.requires_grad)
        fresh[id(original)] = value
    return {name: fresh[id(original)] for name, original in own.items()}


def _apply(
    model: nn.Module, replacements: Mapping[str, Tensor], attributes: list[tuple[nn.Module, Attributes]]
) -> None:
    modules = dict(_modules(model))
    for name, value in replacements.items():
        path, _, leaf = name.rpartition(".")
        if isinstance(value, nn.Parameter):
            modules[path]._parameters[leaf] = value
        else:
            modules[path]._buffers[leaf] = value
    for module, values in attributes:
        for attribute, width in values.items():
            setattr(module, attribute, width)
