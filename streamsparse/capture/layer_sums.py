"""The growing sums of one layer during a capture into statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from streamsparse.capture.own_outputs import OwnMap, add_totals
from streamsparse.kernels.folds import FoldShifts, FoldSums, empty_folds
from streamsparse.kernels.precision import ProductDtype
from streamsparse.kernels.shift_sums import shift_bytes
from streamsparse.kernels.shifts import update_shifts
from streamsparse.store.growing import GrowingSums
from streamsparse.store.stream import CapturedLayer

PENDING_BYTES = 64 * 2**20
_MEASURED_BELOW = 2  # times folds·columns patches: fewer cost less to multiply than deriving costs


class LayerSums:
    """Sums by fold on the model's device; responses are derived at the end where their weight is given (mutable).

    Adding to the sums of a wide layer costs more than the products of a few images. So batches wait, as copies,
    until they weigh as much as the sums of one fold (at most PENDING_BYTES).
    """

    def __init__(self, sums: GrowingSums, calls: int = 1) -> None:
        """`calls`: of the layer in one forward pass; those of several are added at once."""
        self._sums = sums
        self._enough_bytes = min(PENDING_BYTES, shift_bytes(sums.geometry)) if calls == 1 else 0
        self._pending: list[tuple[Tensor, Tensor | None]] = []
        self._pending_first = 0
        self._product_dtype: ProductDtype = torch.float64

    @property
    def sums(self) -> GrowingSums:
        """With everything that was added."""
        self._add_pending()
        return self._sums

    def add(self, inputs: Tensor, outputs: Tensor, first_image: int, product_dtype: ProductDtype) -> None:
        """Add what one call saw of consecutive images, which follow those of the call before."""
        derived = self._sums.weight is not None
        if derived:
            add_totals(self._sums.folds[0], outputs, self._sums.geometry)
        if not self._pending:
            self._pending_first, self._product_dtype = first_image, product_dtype
        pending = sum(kept.nbytes for kept, _ in self._pending) + inputs.nbytes
        waits = pending < self._enough_bytes
        self._pending.append(
            (inputs.clone() if waits else inputs, None if derived else outputs.clone() if waits else outputs)
        )
        if not waits:
            self._add_pending()

    def _add_pending(self) -> None:
        if not self._pending:
            return
        inputs = _joined([inputs for inputs, _ in self._pending])
        measured = [outputs for _, outputs in self._pending if outputs is not None]
        outputs = _joined(measured) if measured else None
        self._pending.clear()
        folds = self._sums.folds
        for fold, part in enumerate(folds):
            chosen = slice((fold - self._pending_first) % len(folds), None, len(folds))
            if inputs[chosen].shape[0]:
                responses = None if outputs is None else outputs[chosen]
                update_shifts(
                    part, inputs[chosen], responses, self._sums.geometry, product_dtype=self._product_dtype
                )


def _joined(batches: list[Tensor]) -> Tensor:
    return batches[0] if len(batches) == 1 else torch.cat(batches)


def begin_layer(
    layer: CapturedLayer, images: int, folds: int, own: OwnMap | None, device: torch.device | str
) -> LayerSums:
    """Empty sums; the responses are derived where that costs less than summing those of so many images.

    Deriving multiplies every fold's Gram with the weight once, in float64; a layer with few patches for its
    columns (the last ones of a network for small images) is done sooner by multiplying its outputs.
    """
    geometry = layer.geometry
    patches = images * layer.calls * geometry.patches_per_image
    empty = empty_folds(geometry, folds, device)
    if own is None or patches <= _MEASURED_BELOW * folds * geometry.columns:
        return LayerSums(GrowingSums(geometry, empty), layer.calls)
    return LayerSums(GrowingSums(geometry, empty, own.weight, own.bias), layer.calls)


def resume_layer(
    committed: GrowingSums, own: OwnMap | None, device: torch.device | str, calls: int = 1
) -> LayerSums:
    """Go on with committed sums; responses that were derived are only derived further if the layer still allows."""
    sums = committed.measured() if own is None else committed
    return LayerSums(replace(sums, folds=_on(sums.folds, device)), calls)


def _on(folds: FoldShifts, device: torch.device | str) -> FoldShifts:
    return tuple(
        replace(part, **{name: tensor.to(device) for name, tensor in part.tensors().items()}) for part in folds
    )


class Finishing(Mapping[str, FoldSums]):
    """Sums by layer, finished when asked for: those of a whole network may need more memory than there is."""

    def __init__(self, layers: Sequence[str], finished: Callable[[str], FoldSums]) -> None:
        self._layers, self._finished = layers, finished

    def __getitem__(self, layer: str) -> FoldSums:
        return self._finished(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
