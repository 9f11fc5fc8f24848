"""Judging whether the statistics of a growing capture are enough, layer by layer; see `streamsparse.adaptive`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from streamsparse.intake.captured import Captured
from streamsparse.kernels.folds import FoldSums
from streamsparse.network.observation import whole_groups
from streamsparse.solve import kept_inputs
from streamsparse.solve.threads import blas_threads
from streamsparse.solve.working import refit_errors, working_support
from streamsparse.types import ChannelGroup


@dataclass(frozen=True)
class Request:
    """What was asked.

    Attributes:
        tolerance: a relative squared error.
        keep_fraction: of every group's channels in the working support.
        images_at_most: the bound.
        seed: of the sample.
        folds: of the statistics.
    """

    tolerance: float
    keep_fraction: float
    images_at_most: int
    seed: int
    folds: int

    def identity(self) -> dict[str, Any]:
        """What the errors found at a look depend on, beside the run."""
        return {"keep_fraction": self.keep_fraction, "seed": self.seed, "folds": self.folds}


@dataclass(frozen=True)
class LayerLook:
    """One layer's refit at its working support, on the statistics of so many images.

    Attributes:
        images: that were summed.
        training_error, held_out_error: relative squared errors, means over the folds left out; None where there
            were fewer patches to fit than columns, and the refit was not tried.
        error_bar: standard error of `held_out_error` over the folds.
        ridge: of the refit.
    """

    images: int
    training_error: float | None
    held_out_error: float | None
    error_bar: float | None
    ridge: float | None

    @property
    def gap(self) -> float:
        """Held-out minus training error; infinite if unknown."""
        if self.held_out_error is None or self.training_error is None:
            return float("inf")
        return self.held_out_error - self.training_error


@dataclass(frozen=True)
class LayerConvergence:
    """How one layer fared.

    Attributes:
        layer: module path.
        kept: input channels (features) of the working support; inputs: of the layer.
        images: at which it converged, or None.
        looks: at growing numbers of images; none after it had converged.
    """

    layer: str
    kept: int
    inputs: int
    images: int | None
    looks: tuple[LayerLook, ...]


@dataclass(frozen=True)
class Convergence:
    """How a capture ended.

    Attributes:
        converged: every layer has; False if all images were used before.
        images: that the run now holds.
        request: what was asked.
        layers: in order of execution.
    """

    converged: bool
    images: int
    request: Request
    layers: tuple[LayerConvergence, ...]


class Judge:
    """Remembers the looks at every layer (mutable)."""

    def __init__(self, captured: Captured, request: Request, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        """
        Args:
            captured: the run's manifest; its captured layers are judged.
            request: what is asked.
            earlier: `to_json` of a judge of the same run and `Request.identity`.
        """
        self._captured, self._request = captured, request
        whole = whole_groups(captured.graph, captured.manifest["layers"])
        self._groups = [group for group in captured.graph.groups if group.name not in whole]
        keep = {group.name: range(max(1, round(request.keep_fraction * group.size))) for group in self._groups}
        inputs = kept_inputs(captured.graph, keep)  # how many; which ones, every look decides
        self._kept = {layer: len(inputs[layer]) for layer in captured.manifest["layers"] if layer in inputs}
        self._looks: dict[str, dict[int, LayerLook]] = defaultdict(dict)
        for entry in earlier:
            fields = {name: value for name, value in entry.items() if name != "layer"}
            self._looks[entry["layer"]][entry["images"]] = LayerLook(**fields)

    def to_json(self) -> list[dict[str, Any]]:
        """Every look at every layer."""
        return [{"layer": layer, **asdict(look)} for layer, looks in self._looks.items() for look in looks.values()]

    def look(self, images: int, statistics: Mapping[str, FoldSums]) -> None:
        """Cross-validate every layer that has not converged yet and was not looked at with so many images."""
        todo = {
            layer
            for layer in self._kept
            if self._converged_at(layer, images) is None and images not in self._looks[layer]
        }
        for layer in [layer for layer in self._kept if layer in todo and not self.fits(layer, images)]:
            self._looks[layer][images] = LayerLook(images, None, None, None, None)
            todo.remove(layer)
        for layer, inputs, sums in self._supports(todo, statistics):
            geometry = self._captured.graph.layers[layer]
            with blas_threads(geometry.columns):
                found = refit_errors(geometry, sums, inputs)
            self._looks[layer][images] = LayerLook(images, **asdict(found))

    def fits(self, layer: str, images: int) -> bool:
        """Whether the folds that are fitted hold more patches than there are columns."""
        geometry, folds = self._captured.graph.layers[layer], self._request.folds
        patches = images * geometry.patches_per_image * (folds - 1) / folds
        return patches > self._kept[layer] * geometry.taps / geometry.groups

    def _supports(
        self, todo: set[str], statistics: Mapping[str, FoldSums]
    ) -> Iterator[tuple[str, np.ndarray, FoldSums]]:
        """Every layer of `todo` with its kept inputs and sums, as soon as all groups that feed it are chosen."""
        finished = lru_cache(maxsize=1)(
            statistics.__getitem__
        )  # finishing takes seconds; most groups feed one layer
        graph, keep = self._captured.graph, dict[str, list[int]]()
        needed = [group for group in self._groups if todo & self._layers(group)]
        for group in needed:
            with blas_threads(max(graph.layers[layer].columns for layer in self._layers(group))):
                own = _Lazily(finished, self._layers(group))
                keep[group.name] = working_support(group, graph.layers, own, self._request.keep_fraction).tolist()
            left = {layer for other in needed if other.name not in keep for layer in self._layers(other)}
            for layer in sorted(self._layers(group) & todo - left, key=list(self._kept).index):
                yield layer, kept_inputs(graph, keep)[layer], finished(layer)

    def _layers(self, group: ChannelGroup) -> set[str]:
        return {consumer.layer for consumer in group.consumers}

    def _converged_at(self, layer: str, images: int) -> int | None:
        """The images of the second good look in a row, of those at up to `images`."""
        looks = [look for number, look in sorted(self._looks[layer].items()) if number <= images]
        tolerance = self._request.tolerance
        for before, look in pairwise(looks):
            if max(before.gap, look.gap) <= tolerance and _moved(before, look) <= tolerance:
                return look.images
        return None

    def converged(self, images: int) -> bool:
        """Whether every layer has, at up to so many images."""
        return all(self._converged_at(layer, images) is not None for layer in self._kept)

    def summary(self, images: int) -> str:
        """One line about the looks at so many images."""
        count = sum(self._converged_at(layer, images) is not None for layer in self._kept)
        looks = {layer: self._looks[layer][images] for layer in self._kept if images in self._looks[layer]}
        early = [layer for layer, look in looks.items() if look.held_out_error is None]
        widest = max(looks, key=lambda layer: looks[layer].gap, default=None)
        tail = (
            "" if widest is None else f"; held-out − training error is up to {looks[widest].gap:.4f} ('{widest}')"
        )
        if early:
            tail = f"; too few patches to tell for {', '.join(early)}"
        return f"{images:,} images: {count} of {len(self._kept)} layers have converged{tail}"

    def convergence(self, images: int) -> Convergence:
        """The report of a run that holds so many images."""
        layers = tuple(
            LayerConvergence(
                layer=layer,
                kept=kept,
                inputs=self._captured.graph.layers[layer].in_channels,
                images=self._converged_at(layer, images),
                looks=tuple(look for number, look in sorted(self._looks[layer].items()) if number <= images),
            )
            for layer, kept in self._kept.items()
        )
        return Convergence(self.converged(images), images, self._request, layers)


def _moved(before: LayerLook, look: LayerLook) -> float:
    if before.held_out_error is None or look.held_out_error is None:
        return float("inf")
    return abs(look.held_out_error - before.held_out_error)


class _Lazily(Mapping[str, FoldSums]):
    """Statistics of the given layers, finished when asked for."""

    def __init__(self, finished: Any, layers: set[str]) -> None:
        self._finished, self._layers = finished, layers

    def __getitem__(self, layer: str) -> FoldSums:
        found: FoldSums = self._finished(layer)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
