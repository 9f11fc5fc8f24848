"""Put re-estimated weights into a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError

LayerWeights = tuple[np.ndarray, np.ndarray | None]
"""Weight of the layer's own shape, and bias (outputs,) or None for a layer without one."""


def with_weights(model: nn.Module, weights: Mapping[str, LayerWeights]) -> nn.Module:
    """A copy of the model in which the named layers have these weights and biases, cast to their own dtype.

    Raises:
        ModelError: a layer has another shape.
    """
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for layer, (weight, bias) in weights.items():
            module = changed.get_submodule(layer)
            _assign(module.weight, weight, f"{layer}.weight")
            if bias is not None:
                _assign(module.bias, bias, f"{layer}.bias")
    return changed


def _assign(parameter: Tensor | nn.Module | None, values: np.ndarray, where: str) -> None:
    if not isinstance(parameter, Tensor) or tuple(parameter.shape) != values.shape:
        raise ModelError(
            "Re-estimated weights do not fit the model.",
            expected="nothing" if parameter is None else tuple(getattr(parameter, "shape", ())),
            got=values.shape,
            where=where,
            remedy="use the model that the run was captured with",
        )
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
