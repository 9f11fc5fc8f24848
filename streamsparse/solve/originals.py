"""The original's weights: what a refit goes back to where the patches cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.torch import load
from torch import Tensor, nn

from streamsparse.store import Run
from streamsparse.types import LayerGeometry


@dataclass(frozen=True, eq=False)
class Originals:
    """Stored tensors of the original, by name; each layer's is converted when it is asked for."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, run: Run) -> Originals:
        """Those that the capture stored.

        Raises:
            CorruptDataError: they are missing, or not those of the manifest.
        """
        return cls(load(run.weights()))

    @classmethod
    def of_model(cls, model: nn.Module) -> Originals:
        """Those of the original at hand."""
        return cls(model.state_dict())

    def weight(self, geometry: LayerGeometry) -> np.ndarray | None:
        """The layer's weight of its own shape, float64; None where it is computed from other tensors."""
        found = self.tensors.get(f"{geometry.layer}.weight")
        shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
        if found is None or tuple(found.shape) != shape or not found.is_floating_point():
            return None
        array: np.ndarray = found.double().cpu().numpy()
        return array if np.isfinite(array).all() else None
