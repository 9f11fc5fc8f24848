"""Measured errors of single layers inside a network whose weights were re-estimated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from streamsparse.events import OnEvent, ignore, reporting

Outputs = dict[str, list[Tensor]]


def measured_errors(
    original: nn.Module,
    changed: nn.Module,
    layers: Sequence[str],
    dataset: Dataset[Any],
    *,
    batch_images: int = 500,
    device: str = "cpu",
    on_event: OnEvent = ignore,
) -> dict[str, float]:
    """Squared difference of the layers' outputs over the variance of the original's, float64 sums.

    Args:
        original: the reference.
        changed: a model of the same shapes (weights re-estimated, removed channels masked).
        layers: module paths; channels are dimension 1 of a convolution's output, the last one of a linear layer's.
        dataset: items are an image or a tuple that begins with one.

    Returns:
        By layer; 0 where the original's output is constant and met exactly.
    """
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=batch_images)
    models = [model.to(device).eval() for model in (original, changed)]
    sums = {layer: _Sums() for layer in layers}
    total = len(dataset)  # type: ignore[arg-type]
    with reporting("measure layers", total, "images", on_event) as advance, torch.inference_mode():
        for item in loader:
            images = (item[0] if isinstance(item, (list, tuple)) else item).to(device)
            found = [_outputs(model, layers, images) for model in models]
            for layer in layers:
                for wanted, given in zip(found[0][layer], found[1][layer], strict=True):
                    sums[layer].add(
                        _rows(original.get_submodule(layer), wanted), _rows(original.get_submodule(layer), given)
                    )
            advance(len(images))
    return {layer: part.error() for layer, part in sums.items()}


class _Sums:
    """Σ‖ŷ − y‖², Σy, Σ‖y‖² and the number of rows, float64."""

    def __init__(self) -> None:
        self.residual, self.power, self.rows = 0.0, 0.0, 0
        self.total: Tensor | float = 0.0

    def add(self, wanted: Tensor, given: Tensor) -> None:
        self.residual += float((given - wanted).square().sum())
        self.power += float(wanted.square().sum())
        self.total = self.total + wanted.sum(0)
        self.rows += len(wanted)

    def error(self) -> float:
        mean_power = float(torch.as_tensor(self.total).square().sum()) / max(1, self.rows)
        variance = self.power - mean_power
        return self.residual / variance if variance > 0 else 0.0


def _rows(module: nn.Module, output: Tensor) -> Tensor:
    """(rows, channels), float64."""
    moved = output if isinstance(module, nn.Linear) else output.movedim(1, -1)
    return moved.reshape(-1, moved.shape[-1]).double()


def _outputs(model: nn.Module, layers: Sequence[str], images: Tensor) -> Outputs:
    outputs: Outputs = {layer: [] for layer in layers}
    with _recorded(model, outputs):
        model(images)
    return outputs


@contextmanager
def _recorded(model: nn.Module, outputs: Outputs) -> Iterator[None]:
    def recorder(layer: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[layer].append(output.detach().clone())

        return record

    handles = [model.get_submodule(layer).register_forward_hook(recorder(layer)) for layer in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
