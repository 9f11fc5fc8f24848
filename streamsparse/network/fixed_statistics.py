"""Normalisations over channels, without their statistics, for the trial.

Removing channels changes the mean and variance of a LayerNorm over them: masked and pruned differ by design, and
the group is reported as approximate. With the statistics fixed, everything else must still be exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.overrides import TorchFunctionMode


class FixedStatistics(TorchFunctionMode):
    """Within this context LayerNorm, RMSNorm, and GroupNorm of one group, only scale and shift."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name == "layer_norm" or name == "rms_norm":
            return _affine(*args, **(kwargs or {}))
        if name == "group_norm" and (args[1] if len(args) > 1 else (kwargs or {}).get("num_groups")) == 1:
            return _affine_of_one_group(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _affine(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: object,
    **__: object,
) -> Tensor:
    if tuple(input.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
        raise ValueError(f"expected the last dimensions {tuple(normalized_shape)}, got {tuple(input.shape)}")
    scaled = input if weight is None else input * weight
    return scaled if bias is None or not isinstance(bias, Tensor) else scaled + bias


def _affine_of_one_group(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: object,
    **__: object,
) -> Tensor:
    ones = (1, -1, *[1] * (input.dim() - 2))
    scaled = input if weight is None else input * weight.view(ones)
    return scaled if bias is None else scaled + bias.view(ones)
