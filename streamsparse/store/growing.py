"""The sums of one layer while a capture that dumps nothing goes on: shifted products, by fold.

They are committed as they are: a third of the Gram's bytes for a 3×3 layer. They are finished once, when the shards
are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamsparse.errors import CorruptDataError, ModelError
from streamsparse.kernels.folds import FoldShifts, FoldSums, finish_folds
from streamsparse.kernels.shift_sums import SHIFT_FIELDS, ShiftSums, own_responses, shift_field_shapes
from streamsparse.store.records import Draft
from streamsparse.types import LayerGeometry

TOTAL_TOLERANCE = 1e-3
"""Of Σ y relative to √(T Σ ‖y‖²) over T patches, and of Σ ‖y‖² relative to itself."""


@dataclass(frozen=True, eq=False)
class GrowingSums:
    """Sums by fold, and where the layer makes its output itself, how.

    Attributes:
        geometry: of the layer.
        folds: where `weight` is given, their cross terms are unused, and `sum_y` and `power` of the first hold what
            was measured over all folds, to be compared with what the weight gives.
        weight: (outputs, channels per group, *kernel) if the responses are y = weight·x + bias; None if they are
            summed as they were measured.
        bias: (outputs,), or None.
    """

    geometry: LayerGeometry
    folds: FoldShifts
    weight: Tensor | None = None
    bias: Tensor | None = None

    def finished(self) -> FoldSums:
        """Gram, cross and the rest of every fold, on the CPU.

        Raises:
            ModelError: the measured responses are not those of the weight.
        """
        finished = finish_folds(self.folds, self.geometry)
        if self.weight is not None:
            self.check_means()
            finished = tuple(own_responses(part, self.weight, self.bias) for part in finished)
            measured, derived = float(self.folds[0].power.sum()), sum(float(part.power.sum()) for part in finished)
            if abs(derived - measured) > TOTAL_TOLERANCE * measured:
                raise _not_its_own(self.geometry.layer, abs(derived - measured) / max(measured, 1e-300))
        return tuple(replace(part, **_on_cpu(part.tensors())) for part in finished)

    def check_means(self) -> None:
        """Compare the measured sum of the responses with weight·Σx + T·bias, which costs next to nothing.

        Raises:
            ModelError: they differ.
        """
        if self.weight is None:
            return
        groups = self.folds[0].sum_x.shape[0]
        sum_x = torch.stack([part.sum_x for part in self.folds]).sum(0)  # (groups, columns)
        count = sum(float(part.count) for part in self.folds)
        weights = self.weight.to(sum_x).reshape(groups, -1, self.geometry.columns)
        derived = (weights @ sum_x.unsqueeze(-1)).flatten()
        if self.bias is not None:
            derived = derived + count * self.bias.to(sum_x)
        shift = float((derived - self.folds[0].sum_y.flatten()).norm())
        scale = (count * float(self.folds[0].power.sum())) ** 0.5
        if shift > TOTAL_TOLERANCE * scale:
            raise _not_its_own(self.geometry.layer, shift / max(scale, 1e-300))

    def measured(self) -> GrowingSums:
        """The same sums with their responses in place, to go on with measured ones."""
        if self.weight is None:
            return self
        parts = zip(self.folds, self.finished(), strict=True)
        return GrowingSums(
            self.geometry,
            tuple(replace(part, cross=done.cross, sum_y=done.sum_y, power=done.power) for part, done in parts),
        )

    def write(self, draft: Draft) -> None:
        """Write and commit the sums, array by array: no copy of them all."""
        names = []
        for fold, part in enumerate(self.folds):
            for name, tensor in part.tensors().items():
                if name != "cross" or self.weight is None:
                    names.append(f"{name}-{fold}")
                    draft.add(names[-1], tensor.cpu().numpy())
        for name, own in (("weight", self.weight), ("bias", self.bias)):
            if own is not None:
                names.append(name)
                draft.add(name, own.cpu().numpy())
        draft.commit(names, {"folds": len(self.folds)})


def growing_sums(geometry: LayerGeometry, arrays: Mapping[str, np.ndarray], folds: int, where: str) -> GrowingSums:
    """The sums that a record's arrays were written from.

    Raises:
        CorruptDataError: some are missing.
    """
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    own, shapes = "weight" in tensors, shift_field_shapes(geometry)
    try:
        parts = tuple(
            ShiftSums(**{name: _field(tensors, name, fold, own, shapes[name]) for name in SHIFT_FIELDS})
            for fold in range(folds)
        )
    except KeyError as error:
        raise CorruptDataError(
            "Committed sums are incomplete, or of an earlier layout.",
            expected=f"an array {error} for every fold",
            got=", ".join(sorted(arrays)),
            where=where,
            remedy="capture this shard again with --overwrite",
        ) from error
    return GrowingSums(geometry, parts, tensors.get("weight"), tensors.get("bias"))


def _field(tensors: Mapping[str, Tensor], name: str, fold: int, own: bool, shape: tuple[int, ...]) -> Tensor:
    if own and name == "cross":
        return torch.zeros(shape, dtype=torch.float64)
    return tensors[f"{name}-{fold}"]


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _not_its_own(layer: str, off: float) -> ModelError:
    return ModelError(
        f"The outputs of layer '{layer}' are not always its weights times its input.",
        expected=f"sums that agree to a relative {TOTAL_TOLERANCE:g}, as on the first images",
        got=f"{off:.3g}",
        where=layer,
        remedy="remove hooks that change its output, or capture with --sink activations",
    )
