"""Statistics for a sequential refit: inputs as the already pruned layers produce them, outputs of the original.

    images -> original           outputs of the layers, see `capture.responses`
           -> partly refitted    inputs of the same layers, those that stay, summed with them on the device

The partly refitted model is run up to the last of these layers.

Nothing is dumped: a pass serves one refit of a few layers, and a new one takes as long as reading a dump.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from streamsparse.capture.images import Images
from streamsparse.capture.responses import Outputs, Responses
from streamsparse.capture.taps import run_to_last
from streamsparse.kernels.folds import FoldShifts, FoldSums, empty_folds, finish_folds, update_folds
from streamsparse.kernels.precision import ProductDtype
from streamsparse.kernels.statistics import Sums
from streamsparse.store.stream import CapturedLayer, StreamPlan


def sum_behind(
    plan: StreamPlan,
    partial: nn.Module,
    original: Responses,
    images: Images,
    *,
    folds: int,
    kept: Mapping[str, Tensor] | None = None,
    product_dtype: ProductDtype = "float32",
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, FoldSums]:
    """Sum the planned layers over all images.

    Args:
        plan: one shard that holds all images; its dtype and codec are not used.
        kept: input channels (features) to sum, by layer, as many as the plan's geometry has; layers that are absent
            are summed whole.
        partial: the model with some layers refitted, whose layers' inputs are taken; on `device`, evaluating.
        original: the responses: outputs of the original's layers, on `device`.
        images: the calibration images.
        folds: image i belongs to fold i mod `folds`.
        product_dtype: of products within a block; sums are float64.
        device: of the models.
        advance: called after every batch, with its number of images.

    Returns:
        by layer, float64 on the CPU.

    Raises:
        NonFiniteError: activations that are not finite.
        ModelError: a layer was called another number of times than planned.
    """
    layers = {layer.geometry.layer: layer for layer in plan.layers}
    sums = {name: empty_folds(layer.geometry, folds, device) for name, layer in layers.items()}
    spans = [plan.span(batch) for batch in range(plan.batches)]
    with torch.inference_mode():
        selected = {name: index.to(device) for name, index in (kept or {}).items()}
        for number, (span, batch) in enumerate(zip(spans, images.batches(spans), strict=True)):
            inputs = batch.to(device)
            outputs = original.of(layers, number, inputs)
            _add(partial, layers, selected, sums, inputs, outputs, span.start, product_dtype)
            advance(len(span))
    return {name: _on_cpu(finish_folds(sums.pop(name), layer.geometry)) for name, layer in layers.items()}


def _add(
    model: nn.Module,
    layers: Mapping[str, CapturedLayer],
    kept: Mapping[str, Tensor],
    sums: Mapping[str, FoldShifts],
    batch: Tensor,
    outputs: Outputs,
    first_image: int,
    product_dtype: ProductDtype,
) -> None:
    def add(name: str, call: int, inputs: Tensor, output: Tensor) -> None:
        responses = outputs.pop((name, call), output)
        if name in kept:
            inputs = inputs.index_select(-1 if layers[name].geometry.kind == "linear" else 1, kept[name])
        update_folds(sums[name], inputs, responses, layers[name].geometry, first_image, product_dtype)

    run_to_last(model, {name: layer.calls for name, layer in layers.items()}, batch, add)


def _on_cpu(sums: FoldSums) -> FoldSums:
    return tuple(Sums(**{name: tensor.cpu() for name, tensor in part.tensors().items()}) for part in sums)
