"""The width attributes of a module (`in_channels`, `num_features`, `groups`, ...) from its tensors' shapes.

A module of a type that is not known here and is not PyTorch's own keeps its attributes: its widths are its
tensors'. A module of `torch.nn` whose attributes cannot be derived is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from streamsparse.errors import WeightsError

Attributes = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def width_attributes(path: str, module: nn.Module, shapes: Shapes, groups: int | None) -> Attributes:
    """The attributes that `module` needs to hold tensors of these shapes.

    Args:
        path: of the module, for messages.
        module: of the original, with the original's attributes.
        shapes: of the module's own parameters and persistent buffers, by local name.
        groups: the number of groups where it is known; None: unknown.

    Raises:
        WeightsError: the shapes contradict each other, leave the number of groups open, or belong to a module
            of `torch.nn` that cannot be resized.
    """
    for kind, rule in _RULES:
        if isinstance(module, kind):
            return rule(path, module, shapes, groups)
    if type(module).__module__.startswith("torch.nn."):
        raise WeightsError(
            f"A {type(module).__name__} cannot be resized.",
            expected="the original's shapes",
            got={leaf: list(shape) for leaf, shape in shapes.items()},
            where=path,
            remedy="Use a checkpoint in which this layer is whole.",
        )
    return {}


def checked_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, int]]) -> list[tuple[nn.Module, Attributes]]:
    """Sizes by module path and attribute, with the modules they belong to.

    Raises:
        WeightsError: no such module, no such integer among its own attributes, or not from 1 to its value.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, values in sizes.items():
        for name, size in values.items():
            original = vars(modules[path]).get(name) if path in modules else None
            if type(original) is not int or not 1 <= size <= original:
                raise WeightsError(
                    "A size in the model's code does not fit the original.",
                    expected="an integer attribute" if type(original) is not int else f"1 to {original}",
                    got=size,
                    where=f"{path}.{name}",
                    remedy="Build the unpruned original with the constructor that the tensors come from.",
                )
    return [(modules[path], dict(values)) for path, values in sizes.items()]


def _convolution(path: str, module: _ConvNd, shapes: Shapes, groups: int | None) -> Attributes:
    weight = _weight(path, module, shapes)
    if module.transposed:  # weight: (in, out per group, kernel...)
        per_group, blocks = module.out_channels // module.groups, module.in_channels // module.groups
    else:  # weight: (out, in per group, kernel...)
        per_group, blocks = module.in_channels // module.groups, module.out_channels // module.groups
    options = _options(module.groups, weight[0], blocks, whole_groups=weight[1] == per_group)
    count = _choose(path, module.groups, options, groups, weight)
    wide, narrow = weight[0], weight[1] * count
    inputs, outputs = (wide, narrow) if module.transposed else (narrow, wide)
    _same(path, shapes, outputs, "bias")
    return {"in_channels": inputs, "out_channels": outputs, "groups": count}


def _linear(path: str, module: nn.Linear, shapes: Shapes, groups: int | None) -> Attributes:
    outputs, inputs = _weight(path, module, shapes)
    _same(path, shapes, outputs, "bias")
    return {"in_features": inputs, "out_features": outputs}


def _batch_normalisation(path: str, module: _NormBase, shapes: Shapes, groups: int | None) -> Attributes:
    per_channel = [leaf for leaf in ("weight", "bias", "running_mean", "running_var") if leaf in shapes]
    features = shapes[per_channel[0]][0]
    _same(path, shapes, features, *per_channel)
    return {"num_features": features}


def _group_normalisation(path: str, module: nn.GroupNorm, shapes: Shapes, groups: int | None) -> Attributes:
    (channels,) = _weight(path, module, shapes)
    _same(path, shapes, channels, "bias")
    size = module.num_channels // module.num_groups
    options = _options(module.num_groups, channels, size, whole_groups=True)
    return {
        "num_channels": channels,
        "num_groups": _choose(path, module.num_groups, options, groups, (channels,)),
    }


def _layer_normalisation(path: str, module: nn.LayerNorm, shapes: Shapes, groups: int | None) -> Attributes:
    shape = _weight(path, module, shapes)
    if shapes.get("bias", shape) != shape:
        _same(path, shapes, shape[0], "bias")
    return {"normalized_shape": tuple(shape)}


def _prelu(path: str, module: nn.PReLU, shapes: Shapes, groups: int | None) -> Attributes:
    return {"num_parameters": _weight(path, module, shapes)[0]}


def _embedding(path: str, module: nn.Embedding, shapes: Shapes, groups: int | None) -> Attributes:
    weight = _weight(path, module, shapes)
    if weight[0] != module.num_embeddings:
        raise WeightsError(
            "An embedding has lost rows: its indices would point elsewhere.",
            expected=f"{module.num_embeddings} rows",
            got=weight[0],
            where=path,
            remedy="Use a checkpoint with the whole embedding.",
        )
    return {"embedding_dim": weight[1]}


_RULES: tuple[tuple[Any, Callable[[str, Any, Shapes, int | None], Attributes]], ...] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (_NormBase, _batch_normalisation),
    (nn.GroupNorm, _group_normalisation),
    ((nn.LayerNorm, nn.RMSNorm), _layer_normalisation),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
)


def _weight(path: str, module: nn.Module, shapes: Shapes) -> tuple[int, ...]:
    if "weight" in shapes:
        return shapes["weight"]
    raise WeightsError(
        f"A {type(module).__name__} whose weight is computed from other tensors cannot be resized.",
        expected="a parameter called weight",
        got=sorted(shapes),
        where=path,
        remedy="Remove the parametrization (weight or spectral normalisation) before pruning.",
    )


def _same(path: str, shapes: Shapes, width: int, *leaves: str) -> None:
    for leaf in leaves:
        if shapes.get(leaf, (width,)) != (width,):
            raise WeightsError(
                "The tensors of one layer contradict each other.",
                expected=f"{width} entries",
                got=shapes[leaf],
                where=f"{path}.{leaf}",
                remedy="The tensors are not those of one model: take the whole checkpoint.",
            )


def _options(original: int, channels: int, group_size: int, whole_groups: bool) -> set[int]:
    """Numbers of groups that explain `channels`: all groups narrowed alike, or whole groups removed."""
    narrowed = {original} if channels % original == 0 else set()
    removed = {channels // group_size} if whole_groups and channels % group_size == 0 else set()
    return narrowed | removed


def _choose(path: str, original: int, options: set[int], declared: int | None, shape: tuple[int, ...]) -> int:
    """The declared number, where there is one, else the only one that explains the shape."""
    if original == 1:
        return 1
    if declared is not None and shape[0] % declared == 0:
        return declared
    if declared is None and len(options) == 1:
        return options.pop()
    raise WeightsError(
        "The number of groups does not follow from the shapes.",
        expected=f"one of {sorted(options)} groups (the original has {original})",
        got="no number of groups" if declared is None else declared,
        where=f"{path}, weight {shape}",
        remedy="Pass groups={path: number} as channel_groups() of the pruned model gives it.",
    )
