"""Outputs of the original's layers for a sequential refit, of as many layers ahead as memory holds.

    pass for layer 3    the original runs up to layer 6: outputs of 3 are used, those of 4, 5 and 6 are held
    pass for layer 4    the original does not run
    ...

Layers near a network's end, whose passes cost most, have the smallest outputs: of VGG-16 with 2,000 images of 32×32
all but the first two of 13 layers need two passes of the original, and would take eleven.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from math import prod

from torch import Tensor, nn

from streamsparse.capture.taps import run_to_last
from streamsparse.store.stream import CapturedLayer, StreamPlan

AHEAD_BYTES = 2**30
"""Of outputs that are held for passes to come, in the memory of the CPU."""

Outputs = dict[tuple[str, int], Tensor]
"""(layer, call) -> (images, *shape)"""


class Responses:
    """Outputs of the original, batch by batch, pass after pass (mutable)."""

    def __init__(self, model: nn.Module, plan: StreamPlan, ahead_bytes: int = AHEAD_BYTES) -> None:
        """
        Args:
            model: in evaluation mode.
            plan: all images, and the layers of all passes in the order in which they are asked for.
            ahead_bytes: of outputs that may be held.
        """
        self._model, self._plan, self._ahead_bytes = model, plan, ahead_bytes
        self._order = {layer.geometry.layer: number for number, layer in enumerate(plan.layers)}
        self._held: dict[int, Outputs] = {}

    def of(self, layers: Mapping[str, CapturedLayer], batch: int, images: Tensor) -> Outputs:
        """Copies of these layers' outputs on the images' device.

        Args:
            layers: of the plan.
            batch: its number; the same images in every pass.
            images: on the model's device.

        Raises:
            ModelError: a layer was called another number of times than planned.
        """
        wanted = {(name, call) for name, layer in layers.items() for call in range(layer.calls)}
        held = self._held.pop(batch, {})
        if not wanted <= held.keys():
            held = self._run(layers, images)
        last = max(self._order[name] for name in layers)
        self._held[batch] = {key: held[key] for key in held if self._order[key[0]] > last}
        return {key: held[key].to(images.device) for key in wanted}

    def _run(self, layers: Mapping[str, CapturedLayer], images: Tensor) -> Outputs:
        found: Outputs = {}
        ahead = self._ahead(layers)

        def keep(name: str, call: int, _: Tensor, output: Tensor) -> None:
            copy = output.clone()  # in-place layers may follow
            found[name, call] = copy.cpu() if name in ahead else copy

        calls = {name: layer.calls for name, layer in {**layers, **ahead}.items()}
        run_to_last(self._model, calls, images, keep)
        return found

    def _ahead(self, layers: Mapping[str, CapturedLayer]) -> dict[str, CapturedLayer]:
        """The layers that follow, as long as the outputs of all of them fit."""
        last = max(self._order[name] for name in layers)
        room = self._ahead_bytes

        def fits(layer: CapturedLayer) -> bool:
            nonlocal room
            room -= self._bytes(layer)
            return room >= 0

        return {layer.geometry.layer: layer for layer in takewhile(fits, self._plan.layers[last + 1 :])}

    def _bytes(self, layer: CapturedLayer) -> int:
        """Of the layer's outputs for all images."""
        item = next((tensor.element_size() for tensor in self._model.parameters()), 4)
        return self._plan.images * layer.calls * prod(layer.shape("output")) * item
