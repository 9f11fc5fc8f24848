"""Sequential refit: every layer's weights on the inputs that the already pruned layers now produce.

    stage 1   layers 1..a   inputs of the original (nothing is pruned before them)
    stage 2   layers a+1..b inputs of the model with stage 1's weights, outputs of the original
    ...

Stage 1 needs no new pass; each further stage is one, in which a few layers are summed over the inputs that stay
and nothing is dumped. The pruned network runs as small as it already is, the original once for several stages
(`capture.responses`). A stage's statistics stay in the run until another refit, so that a killed one goes on with
the stage that it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from streamsparse.capture import CaptureSettings, Images, Responses, captured_images, plan_stream, sum_behind
from streamsparse.errors import UsageError
from streamsparse.events import OnEvent, Reused, ignore, reporting
from streamsparse.intake.captured import Captured, original_model, read_captured
from streamsparse.kernels.folds import FoldSums
from streamsparse.network import prune
from streamsparse.network.refitting import with_weights
from streamsparse.network.resize import stored_tensors
from streamsparse.network.running import evaluating
from streamsparse.network.weights import weights_digest
from streamsparse.recalibration import recalibrated_statistics
from streamsparse.solve import RefittedLayer, kept_inputs
from streamsparse.solve.originals import Originals
from streamsparse.solve.refit import affordable_search, on_inputs, refit_layer
from streamsparse.solve.stage import each_refitted
from streamsparse.solve.threads import blas_threads
from streamsparse.store import Run, layout
from streamsparse.store.solution import Buffers, Weights, commit_solution, read_solution
from streamsparse.store.statistics import Statistics
from streamsparse.store.stream import StreamPlan
from streamsparse.store.timings import recorded
from streamsparse.types import ChannelGraph, PrunePlan, Solution

Kept = Mapping[str, np.ndarray]
"""Sorted input channels (features) that are summed, by layer."""


@dataclass(frozen=True, eq=False)
class _Stage:
    """What every stage of one refit shares."""

    run: Run
    captured: Captured
    original: nn.Module
    images: Images
    capture: CaptureSettings
    folds: int
    products: str
    on_event: OnEvent


def refit(
    run: Run | str | Path,
    data: object,
    *,
    model: nn.Module | None = None,
    stages: int | None = None,
    recalibrate: bool = False,
    settings: CaptureSettings | None = None,
    on_event: OnEvent = ignore,
) -> Solution:
    """Re-estimate the weights of the run's solution in order of execution.

    Args:
        run: with a finished solution; its plan stays as it is.
        data: the calibration data of the capture; the same images are drawn.
        model: the original; None builds it as the manifest says.
        stages: passes to make; None for one per layer. 1 is the independent refit.
        recalibrate: estimate the running statistics of every BatchNorm anew afterwards, see
            `streamsparse.recalibration`.
        settings: as in `capture`.

    Raises:
        StageMissingError: no finished solution, or statistics that are not complete.
        UsageError: a merged run, whose images are elsewhere.
        RunMismatchError: other data or another model than the capture's.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    require_images(run, captured.manifest)
    layers = captured.manifest["layers"]
    parts = _parts(layers, stages)
    read_solution(run)  # before the model is built
    statistics = Statistics(run).require(layers)
    descriptions = [statistics.description(layer) or {} for layer in layers]
    stage = _Stage(
        run=run,
        captured=captured,
        original=original_model(run, model),
        images=captured_images(captured.manifest["data"], data)[0],
        capture=settings or CaptureSettings(),
        folds=max(about["folds"] for about in descriptions),
        products=descriptions[0].get("products", "float32"),
        on_event=on_event,
    )
    with run.lock(), evaluating(stage.original), recorded(run, "refit", on_event) as on_event:
        stage = replace(stage, on_event=on_event)
        plan = read_solution(run).plan
        refitted = _refit_parts(stage, plan, parts)
        weights = {layer.layer: (layer.weight, layer.bias) for layer in refitted}
        buffers = _running_statistics(stage, plan, weights) if recalibrate else {}
        result = Solution(plan, tuple(layer.error for layer in refitted), "sequential", tuple(sorted(buffers)))
        commit_solution(run, result, weights, buffers)
    return result


def _running_statistics(stage: _Stage, plan: PrunePlan, weights: Weights) -> Buffers:
    """Of the network with these weights, over the calibration images."""
    return recalibrated_statistics(
        with_weights(stage.original.cpu(), weights), stage.captured.graph, plan.keep, stage.images,
        batch_images=stage.capture.batch_images, device=stage.capture.device, on_event=stage.on_event,
    )  # fmt: skip


def require_images(run: Run, manifest: Mapping[str, Any]) -> None:
    """Refuse a merged run, before anything is looked for.

    Raises:
        UsageError: the run's statistics are over several samples, at other places.
    """
    sources = manifest["data"].get("sources")
    if sources is not None:
        raise UsageError(
            "A merged run cannot be refitted in order: that takes new passes over its images.",
            expected="a run of one capture, and its calibration data",
            got=f"the statistics of {len(sources)} captures, without images",
            where=run.url,
            remedy="go on with `streamsparse write`: solve has re-estimated the weights from the statistics",
        )


def _parts(layers: list[str], stages: int | None) -> list[list[str]]:
    count = len(layers) if stages is None else min(stages, len(layers))
    if count < 1:
        raise UsageError("A refit takes stages.", expected="≥ 1", got=stages, where="--stages")
    return [[str(layer) for layer in part] for part in np.array_split(layers, count)]


def _refit_parts(stage: _Stage, plan: PrunePlan, parts: list[list[str]]) -> list[RefittedLayer]:
    inputs = kept_inputs(stage.captured.graph, plan.keep)
    originals = Originals.of_model(stage.original)
    refitted: list[RefittedLayer] = []
    used = {layout.ORIGINAL_STREAM}
    passes = _Passes(stage, plan, [layer for part in parts[1:] for layer in part])
    total = (len(parts) - 1) * len(stage.images)
    with (
        reporting("refit", sum(map(len, parts)), "layers", stage.on_event) as advance,
        reporting("refit passes", total, "images", stage.on_event) as passed,
    ):
        for number, part in enumerate(parts):
            if number == 0:
                found = each_refitted(stage.captured, Statistics(stage.run), part, inputs, originals)
            else:
                kept = {layer: inputs[layer] for layer in part}
                statistics = _statistics(passes, kept, number, refitted, passed)
                used.add(statistics.stream)
                found = _on_kept(stage, statistics, kept, originals)
            for layer in found:
                refitted.append(layer)
                advance(1)
    _drop_statistics_but(stage.run, used)
    return refitted


def _statistics(
    passes: _Passes, kept: Kept, number: int, refitted: list[RefittedLayer], passed: Callable[[int], None]
) -> Statistics:
    """Statistics of these layers' kept inputs behind the weights found so far, from a pass of their own."""
    stage, layers = passes.stage, list(kept)
    partial = with_weights(stage.original, {layer.layer: (layer.weight, layer.bias) for layer in refitted})
    selected = {layer: torch.from_numpy(index) for layer, index in kept.items() if _narrow(stage, layer, index)}
    identity = {f"inputs {layer}": index for layer, index in selected.items()}
    stream = f"refit-{number + 1:03d}-{weights_digest({**stored_tensors(partial), **identity})[:12]}"
    statistics = Statistics(stage.run, stream)
    about = {"stream": stream, "images": len(stage.images), "products": stage.products}
    found = [statistics.description(layer) or {} for layer in layers]
    if all(entry.get("folds") == stage.folds and about.items() <= entry.items() for entry in found):
        stage.on_event(Reused(f"refit stage {number + 1}", f"the statistics of {', '.join(layers)}"))
        passed(len(stage.images))
        return statistics
    plan = passes.plan_of(stream, kept)
    sums = passes.sums(plan, partial, {layer.layer for layer in refitted}, selected, passed)
    for layer in plan.layers:
        statistics.write(layer.geometry, sums.pop(layer.geometry.layer), about)
    return statistics


@dataclass(frozen=True, eq=False)
class _Passes:
    """The passes of one refit; planned once the first of them is needed.

    Attributes:
        plan: which channels stay.
        layers: of all passes, in their order.
    """

    stage: _Stage
    plan: PrunePlan
    layers: list[str]

    @cached_property
    def _stream(self) -> StreamPlan:
        """All layers on all inputs."""
        stage = self.stage
        original = stage.original.to(stage.capture.device)
        example = stage.images.example.to(stage.capture.device)
        settings = replace(stage.capture, shard=0, shards=1)
        return plan_stream(original, stage.captured.graph, example, len(stage.images), settings, layers=self.layers)

    @cached_property
    def _responses(self) -> Responses:
        return Responses(self.stage.original, self._stream)

    def plan_of(self, stream: str, kept: Kept) -> StreamPlan:
        """Of the pass for these layers, on the inputs that stay."""
        own = [layer for layer in self._stream.layers if layer.geometry.layer in kept]
        narrow = [
            replace(layer, geometry=on_inputs(layer.geometry, len(kept[layer.geometry.layer]))) for layer in own
        ]
        return replace(self._stream, stream=stream, layers=tuple(narrow))

    def sums(
        self,
        plan: StreamPlan,
        partial: nn.Module,
        refitted: Collection[str],
        selected: Mapping[str, torch.Tensor],
        passed: Callable[[int], None],
    ) -> dict[str, FoldSums]:
        """The pass itself, behind the model whose weights are `refitted` so far."""
        stage = self.stage
        graph = stage.captured.graph
        smaller = prune(partial, graph, _without_use(graph, self.plan, refitted)).to(stage.capture.device)
        return sum_behind(
            plan, smaller, self._responses, stage.images, folds=stage.folds, kept=selected,
            product_dtype=stage.products, device=stage.capture.device, advance=passed,
        )  # fmt: skip


def _without_use(graph: ChannelGraph, plan: PrunePlan, refitted: Collection[str]) -> dict[str, tuple[int, ...]]:
    """What stays, of the groups that refitted layers alone consume: they multiply all else with 0."""
    return {
        group.name: plan.keep[group.name]
        for group in graph.groups
        if group.name in plan.keep and all(consumer.layer in refitted for consumer in group.consumers)
    }


def _narrow(stage: _Stage, layer: str, kept: np.ndarray) -> bool:
    """Whether the layer is summed over the inputs that stay alone."""
    whole = stage.captured.graph.layers[layer]
    return on_inputs(whole, len(kept)) != whole


def _on_kept(stage: _Stage, statistics: Statistics, kept: Kept, originals: Originals) -> Iterator[RefittedLayer]:
    """Re-estimate layers from statistics of the inputs that stay; weights have the layers' own shapes again."""
    for layer, inputs in kept.items():
        whole = stage.captured.graph.layers[layer]
        geometry = on_inputs(whole, len(inputs))
        support = np.arange(len(inputs)) if geometry != whole else inputs
        search = affordable_search(geometry, len(inputs), stage.folds)
        original = originals.weight(whole)
        if original is not None and geometry != whole:
            original = original[:, inputs]
        with blas_threads(geometry.columns):
            found = refit_layer(geometry, statistics[layer], support, search, original)
        if geometry != whole:
            weight = np.zeros((len(found.weight), whole.in_channels, *whole.kernel))
            weight[:, inputs] = found.weight
            found = replace(found, weight=weight)
        yield found


def _drop_statistics_but(run: Run, used: set[str]) -> None:
    """Those of refits of other plans: nobody asks for them again without solving anew."""
    for name in run.documents.names("statistics"):
        stream = layout.name_of(name)
        if stream.startswith("refit-") and stream not in used:
            run.documents.delete(f"statistics/{name}")
