"""Run a changed copy of a network without computing again what comes before the change.

    original   conv1 - conv2 - conv3 - conv4 - fc        one pass: outputs of layers, as many as fit, are recorded
    conv4'     [conv1] [conv2] [conv3] conv4' - fc       [...] gives its recorded output; exact to the bit

What lies between layers (normalisation, activation, pooling) is computed anyway: it is cheap, and may do anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.network.running import evaluating, run
from streamsparse.types import LayerGeometry

RECORD_BYTES = 512 * 2**20
"""Of recorded outputs, on the model's device."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One pass of the original over some images.

    Attributes:
        images: batches (images, *shape).
        outputs: of the model, one per batch.
        calls: layers in the order of their calls.
        recorded: outputs of layers that are called once, by layer, one per batch.
    """

    images: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    calls: tuple[str, ...]
    recorded: Mapping[str, tuple[Tensor, ...]]


def record(
    model: nn.Module,
    layers: Mapping[str, LayerGeometry],
    images: Sequence[Tensor],
    limit_bytes: int = RECORD_BYTES,
) -> Recording:
    """Run the model over the images; of the layers' outputs, those are kept that cost most per byte.

    Args:
        model: images to one tensor, batch first.
        layers: that may be recorded.
        images: batches, on the model's device; at least one.
        limit_bytes: of what is recorded.

    Raises:
        ModelError: the model fails, or returns something else than a tensor.
    """
    calls = _calls(model, layers, images[0])
    chosen = _affordable([layers[name] for name in calls if Counter(calls)[name] == 1], images, limit_bytes)
    recorded: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def keep(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        recorded[name].append(output.clone())  # an activation after it may work in place

    hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in chosen]
    try:
        with evaluating(model):
            outputs = tuple(output_of(model, batch) for batch in images)
    finally:
        for hook in hooks:
            hook.remove()
    return Recording(tuple(images), outputs, calls, {name: tuple(found) for name, found in recorded.items()})


def replay(changed: nn.Module, layers: Collection[str], recording: Recording) -> Iterator[Tensor]:
    """Outputs of a changed copy of the recorded model, batch by batch.

    Args:
        changed: a copy with other weights in `layers`; it is spoilt for other images.
        layers: that differ from the original.
    """
    firsts = [recording.calls.index(name) for name in layers if name in recording.calls]
    before = set(recording.calls[: min(firsts, default=len(recording.calls))]) & set(recording.recorded)
    with evaluating(changed):
        for number, batch in enumerate(recording.images):
            for name in before:
                module = changed.get_submodule(name)
                # An attribute of the object, found before its class's method.
                setattr(module, "forward", partial(_again, recording.recorded[name][number]))  # noqa: B010
            yield output_of(changed, batch)


def output_of(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output, batch first.

    Raises:
        ModelError: it fails, or returns something else than one tensor.
    """
    output = run(model, (images,))
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(images):
        raise ModelError(
            "The model does not return one tensor, batch first.",
            expected=f"a tensor ({len(images)}, ...)",
            got=tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__,
            where=type(model).__qualname__,
            remedy="wrap the model so that it returns the tensor whose change matters",
        )
    return output


def _again(output: Tensor, *_: object, **__: object) -> Tensor:
    return output.clone()


def _calls(model: nn.Module, layers: Mapping[str, LayerGeometry], images: Tensor) -> tuple[str, ...]:
    """The layers in the order of their calls, from one image."""
    calls: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name in layers
    ]
    try:
        with evaluating(model):
            output_of(model, images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(calls)


def _affordable(layers: Sequence[LayerGeometry], images: Sequence[Tensor], limit_bytes: int) -> list[str]:
    """Layers whose outputs fit, those with the most multiplications per output first."""
    count, item = sum(len(batch) for batch in images), images[0].element_size()
    chosen: list[str] = []
    for layer in sorted(layers, key=lambda layer: -layer.columns):
        size = count * item * torch.Size(layer.output_shape).numel()
        if size <= limit_bytes:
            limit_bytes -= size
            chosen.append(layer.layer)
    return chosen
