"""The growing sums of one layer during a capture into statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from streamsparse.capture.own_outputs import OutputTotals, OwnMap
from streamsparse.kernels.folds import FoldShifts, FoldSums, empty_folds, finish_folds, merge_folds, update_folds
from streamsparse.kernels.precision import ProductDtype
from streamsparse.kernels.shift_sums import own_responses
from streamsparse.kernels.shifts import update_shifts
from streamsparse.store.stream import CapturedLayer
from streamsparse.types import LayerGeometry

_MEASURED_BELOW = 2  # times folds·columns patches: fewer cost less to multiply than deriving costs


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Sums by fold; `own` and `totals` where the responses are derived when the sums are finished.

    Attributes:
        geometry: of the layer.
        folds: one accumulator per fold, on the model's device.
        own: the map that makes the layer's outputs, or None: its responses are summed as they are measured.
        totals: of the measured outputs, to be compared with those that `own` gives.
    """

    geometry: LayerGeometry
    folds: FoldShifts
    own: OwnMap | None
    totals: OutputTotals | None

    def add(self, inputs: Tensor, outputs: Tensor, first_image: int, product_dtype: ProductDtype) -> None:
        """Add what one call saw; see `update_folds`."""
        if self.totals is None:
            update_folds(self.folds, inputs, outputs, self.geometry, first_image, product_dtype)
            return
        self.totals.add(outputs)
        for fold, part in enumerate(self.folds):
            chosen = inputs[(fold - first_image) % len(self.folds) :: len(self.folds)]
            if chosen.shape[0]:
                update_shifts(part, chosen, None, self.geometry, product_dtype=product_dtype)

    def finished(self) -> FoldSums:
        """The sums so far, on the CPU, with derived responses in their place.

        Raises:
            ModelError: derived and measured responses differ.
        """
        finished = finish_folds(self.folds, self.geometry)
        if self.own is not None and self.totals is not None:
            finished = tuple(own_responses(part, self.own.weight, self.own.bias) for part in finished)
            self.totals.check(finished)
        return tuple(
            replace(part, **{name: item.cpu() for name, item in part.tensors().items()}) for part in finished
        )


def begin_layer(
    layer: CapturedLayer, images: int, folds: int, own: OwnMap | None, device: torch.device | str
) -> LayerSums:
    """Empty sums; the responses are derived where that costs less than summing those of so many images.

    Deriving multiplies every fold's Gram with the weight once, in float64; a layer with few patches for its
    columns (the last ones of a network for small images) is done sooner by multiplying its outputs.
    """
    geometry = layer.geometry
    patches = images * layer.calls * geometry.patches_per_image
    derived = own is not None and patches > _MEASURED_BELOW * folds * geometry.columns
    return LayerSums(
        geometry=geometry,
        folds=empty_folds(geometry, folds, device),
        own=own if derived else None,
        totals=OutputTotals(geometry, device) if derived else None,
    )


class FinishedSums(Mapping[str, FoldSums]):
    """What an earlier call committed and what this one has summed so far, finished when asked for.

    Layer by layer, because the finished sums of a whole network may need more memory than its growing ones.
    """

    def __init__(
        self, layers: Sequence[str], before: Mapping[str, FoldSums], sums: Mapping[str, LayerSums]
    ) -> None:
        """Either mapping may be empty, or hold all `layers`; what is added to `sums` later counts too."""
        self._layers, self._before, self._sums = layers, before, sums

    def __getitem__(self, layer: str) -> FoldSums:
        parts = [self._before[layer]] if self._before else []
        parts += [self._sums[layer].finished()] if self._sums else []
        return reduce(merge_folds, parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
