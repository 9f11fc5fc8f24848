"""Statistics for a sequential refit: inputs as the already pruned layers produce them, outputs of the original.

    images -> original           outputs of the layers, kept for one batch
           -> partly refitted    inputs of the same layers, those that stay, summed with them on the device

Both models are run up to the last of these layers.

Nothing is dumped: a pass serves one refit of a few layers, and a new one takes as long as reading a dump.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from streamsparse.capture.images import Images
from streamsparse.capture.taps import hooked, wrong_calls
from streamsparse.kernels.folds import FoldShifts, FoldSums, empty_folds, finish_folds, update_folds
from streamsparse.kernels.precision import ProductDtype
from streamsparse.kernels.statistics import Sums
from streamsparse.store.stream import CapturedLayer, StreamPlan

_Outputs = dict[tuple[str, int], Tensor]
"""(layer, call) -> (images, *shape)"""


def sum_behind(
    plan: StreamPlan,
    partial: nn.Module,
    original: nn.Module,
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
        original: the model whose layers' outputs are the responses; likewise.
        images: the calibration images.
        folds: image i belongs to fold i mod `folds`.
        product_dtype: of products within a block; sums are float64.
        device: of both models.
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
        for span, batch in zip(spans, images.batches(spans), strict=True):
            inputs = batch.to(device)
            outputs = _outputs(original, layers, inputs)
            selected = {name: index.to(device) for name, index in (kept or {}).items()}
            _add(partial, layers, selected, sums, inputs, outputs, span.start, product_dtype)
            advance(len(span))
    return {name: _on_cpu(finish_folds(sums.pop(name), layer.geometry)) for name, layer in layers.items()}


def _outputs(model: nn.Module, layers: Mapping[str, CapturedLayer], batch: Tensor) -> _Outputs:
    """Copies: in-place layers may follow."""
    found: _Outputs = {}

    def keep(name: str, call: int, _: Tensor, output: Tensor) -> None:
        found[name, call] = output.clone()

    _pass(model, layers, batch, keep)
    return found


def _add(
    model: nn.Module,
    layers: Mapping[str, CapturedLayer],
    kept: Mapping[str, Tensor],
    sums: Mapping[str, FoldShifts],
    batch: Tensor,
    outputs: _Outputs,
    first_image: int,
    product_dtype: ProductDtype,
) -> None:
    def add(name: str, call: int, inputs: Tensor, output: Tensor) -> None:
        responses = outputs.pop((name, call), output)
        if name in kept:
            inputs = inputs.index_select(-1 if layers[name].geometry.kind == "linear" else 1, kept[name])
        update_folds(sums[name], inputs, responses, layers[name].geometry, first_image, product_dtype)

    _pass(model, layers, batch, add)


class _Enough(BaseException):
    """All planned calls were seen; not an `Exception`, which a model's own code might catch."""


def _pass(
    model: nn.Module,
    layers: Mapping[str, CapturedLayer],
    batch: Tensor,
    at_call: Callable[[str, int, Tensor, Tensor], None],
) -> None:
    """Run the model up to the last planned call; `at_call(layer, call, inputs, output)` behind each of them.

    What lies behind does not matter: a pass for one layer costs half of a whole one in the mean.
    """
    seen = dict.fromkeys(layers, 0)
    planned = sum(layer.calls for layer in layers.values())

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            at_call(name, seen[name], args[0] if args else kwargs["input"], output)
            seen[name] += 1
            if sum(seen.values()) == planned:
                raise _Enough

        return hook

    with suppress(_Enough), hooked(model, {name: hook_of(name) for name in layers}):
        model(batch)
    _check_calls(layers, seen)


def _check_calls(layers: Mapping[str, CapturedLayer], seen: Mapping[str, int]) -> None:
    for name, layer in layers.items():
        if seen[name] != layer.calls:
            raise wrong_calls(name, layer.calls, seen[name])


def _on_cpu(sums: FoldSums) -> FoldSums:
    return tuple(Sums(**{name: tensor.cpu() for name, tensor in part.tensors().items()}) for part in sums)
