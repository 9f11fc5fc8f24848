"""Put re-estimated weights and running statistics into a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError

LayerWeights = tuple[np.ndarray, np.ndarray | None]
"""Weight of the layer's own shape, and bias (outputs,) or None for a layer without one."""


def with_weights(
    model: nn.Module, weights: Mapping[str, LayerWeights], buffers: Mapping[str, np.ndarray] | None = None
) -> nn.Module:
    """A copy of the model in which the named layers have these weights and biases, cast to their own dtype.

    Args:
        weights: by module path.
        buffers: running statistics by key of the model's state; None leaves them as they are.

    Raises:
        ModelError: a layer or buffer has another shape, or there is none of this name.
    """
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for layer, (weight, bias) in weights.items():
            module = changed.get_submodule(layer)
            _assign(module.weight, weight, f"{layer}.weight")
            if bias is not None:
                _assign(module.bias, bias, f"{layer}.bias")
        tensors = dict(changed.named_buffers(remove_duplicate=False))
        for name, values in (buffers or {}).items():
            _assign(tensors.get(name), values, name)
    return changed


def _assign(parameter: Tensor | nn.Module | None, values: np.ndarray, where: str) -> None:
    if not isinstance(parameter, Tensor) or tuple(parameter.shape) != values.shape:
        raise ModelError(
            "Re-estimated values do not fit the model.",
            expected="nothing" if parameter is None else tuple(getattr(parameter, "shape", ())),
            got=values.shape,
            where=where,
            remedy="use the model that the run was captured with",
        )
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
