"""Measured losses of whole cut networks, their weights refitted from statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from streamsparse.intake.captured import Captured
from streamsparse.kernels.divergence import image_losses
from streamsparse.network.refitting import LayerWeights, with_weights
from streamsparse.network.replay import Recording, record, replay
from streamsparse.solve import GroupFront, kept_inputs
from streamsparse.solve.originals import Originals
from streamsparse.solve.supports import LayerRefits
from streamsparse.solve.threads import blas_threads
from streamsparse.store import Run
from streamsparse.store.measured import Losses, commit_measured, read_measured
from streamsparse.store.statistics import Statistics

Counts = Mapping[str, int]


@dataclass(eq=False)
class Bench:
    """Measures plans on some images (mutable: it remembers weights and losses).

    Attributes:
        captured, statistics, original: of the run; the model on the device of the images.
        fronts: of the groups that may be cut.
        recording: of the original on the images.
        run: keeps losses, so that a killed call goes on.
        digest: of everything that a loss depends on but the counts.
        weights: by layer and the inputs that stay, of the last looks.
        losses: of every image, (images,) float64, by counts, the groups in alphabetical order.
    """

    captured: Captured
    statistics: Statistics
    original: nn.Module
    fronts: Mapping[str, GroupFront]
    recording: Recording
    run: Run
    digest: str
    weights: dict[tuple[str, bytes], LayerWeights] = field(default_factory=dict)
    losses: Losses = field(init=False)

    def __post_init__(self) -> None:
        self.losses = read_measured(self.run, self.digest)
        self._known = len(self.losses)

    @property
    def looks(self) -> int:
        """Networks that were measured here."""
        return len(self.losses) - self._known

    def loss(self, counts: Counts) -> np.ndarray:
        """Of the network with these counts, image by image: (images,)."""
        return self.around(counts, ())[0]

    def around(self, counts: Counts, looks: Sequence[tuple[str, int]]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Of the network with these counts, and of those with one group's count changed in turn."""
        plans = [{**counts, group: count} for group, count in looks]
        if not all(_key(plan) in self.losses for plan in (counts, *plans)):
            self._measure(counts, [plan for plan in plans if _key(plan) not in self.losses])
        return self.losses[_key(counts)], [self.losses[_key(plan)] for plan in plans]

    def _measure(self, counts: Counts, plans: Sequence[Counts]) -> None:
        """The base first: what its layers before a change give is not computed again."""
        inputs = [self._inputs(plan) for plan in (counts, *plans)]
        self._refit(inputs)
        base = with_weights(self.original, self._weights(inputs[0]))
        recording = record(base, self.captured.graph.layers if plans else {}, self.recording.images)
        self.losses[_key(counts)] = image_losses(self.recording.outputs, recording.outputs)
        for plan, own in zip(plans, inputs[1:], strict=True):
            changed = {layer: kept for layer, kept in own.items() if not np.array_equal(kept, inputs[0][layer])}
            # A layer whose inputs all stay has the original's weights in the base already.
            model = with_weights(base, self._weights(changed, whole=True))
            outputs = list(replay(model, list(changed), recording))
            self.losses[_key(plan)] = image_losses(self.recording.outputs, outputs)
        commit_measured(self.run, self.digest, self.losses)

    def _inputs(self, counts: Counts) -> dict[str, np.ndarray]:
        keep = {name: front.front.supports[counts[name]].tolist() for name, front in self.fronts.items()}
        return kept_inputs(self.captured.graph, keep)

    def _refit(self, wanted: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Weights of every layer on every set of inputs that is asked for; those of other sets are forgotten."""
        asked = {(layer, kept.tobytes()): kept for inputs in wanted for layer, kept in inputs.items()}
        self.weights = {key: found for key, found in self.weights.items() if key in asked}
        originals = Originals.of_model(self.original)
        for layer, geometry in self.captured.graph.layers.items():
            missing = [
                (key, kept)
                for key, kept in asked.items()
                if key[0] == layer and key not in self.weights and len(kept) < geometry.in_channels
            ]
            if missing:
                with blas_threads(geometry.columns):
                    refits = LayerRefits.of(geometry, self.statistics[layer], originals.weight(geometry))
                    self.weights |= {key: refits.at(kept) for key, kept in missing}

    def _weights(self, inputs: Mapping[str, np.ndarray], whole: bool = False) -> dict[str, LayerWeights]:
        found = {layer: self.weights.get((layer, kept.tobytes())) for layer, kept in inputs.items()}
        if whole:
            found = {name: pair if pair is not None else self._original(name) for name, pair in found.items()}
        return {layer: pair for layer, pair in found.items() if pair is not None}

    def _original(self, layer: str) -> LayerWeights:
        module = self.original.get_submodule(layer)
        tensors = [getattr(module, name) for name in ("weight", "bias")]
        weight, bias = (None if one is None else one.detach().double().cpu().numpy() for one in tensors)
        assert weight is not None
        return weight, bias


def _key(counts: Counts) -> tuple[int, ...]:
    return tuple(counts[name] for name in sorted(counts))
