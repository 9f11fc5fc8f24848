"""Sensitivity: what cutting each group alone, its consumers refitted from statistics, does to the model's output.

    for every group   counts where its held-out error reaches LEVELS    0.003 0.01 0.03 0.1 0.2 0.4
    for every count   weights of the consumers on the front's support    from statistics, zero at removed inputs
                      the model with these, over unseen images           divergence of its class probabilities

A relative error of 1 % means little in one layer and much in another: the budget is spent by these losses instead,
see `solve.losses`. The images are calibration images that the statistics have not seen, where there are enough.
`by="fisher"` predicts the same to second order from one pass with gradients, see `network.fisher`, for models where
every pass is dear. On ResNet-18 at 32 pixels it meets the measured losses within a tenth at held-out errors up to
3 %, and gives 0.8, 0.5 and 0.3 of them at 10, 20 and 40 %: large cuts are beyond the second order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamsparse.capture import Images, captured_images
from streamsparse.errors import StageMissingError, UsageError
from streamsparse.events import Notice, OnEvent, Reused, ignore, reporting
from streamsparse.intake.captured import Captured, original_model, read_captured
from streamsparse.kernels.divergence import measure_of, output_loss
from streamsparse.network.fisher import LayerTensors, quadratic_losses
from streamsparse.network.observation import whole_groups
from streamsparse.network.refitting import LayerWeights, with_weights
from streamsparse.network.replay import Recording, record, replay
from streamsparse.solve import GroupFront, kept_inputs
from streamsparse.solve.losses import counts_at
from streamsparse.solve.measured import found_sensitivities, front_identity
from streamsparse.solve.measured import read_sensitivities as read_sensitivities
from streamsparse.solve.originals import Originals
from streamsparse.solve.supports import LayerRefits
from streamsparse.solve.threads import blas_threads
from streamsparse.store import Run, layout
from streamsparse.store.sensitivities import (
    begin_sensitivities,
    commit_sensitivity,
)
from streamsparse.store.statistics import Statistics
from streamsparse.store.timings import recorded
from streamsparse.types import ChannelGroup, Sensitivity

LEVELS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)
FEWEST_IMAGES, MOST_IMAGES = 256, 4096
"""Where their number is not given."""
_AFFORDABLE_MACS = 4e12  # of all passes: a minute or two on one core
_AFFORDABLE_BYTES = 2**29  # of images, which stay in memory
METHODS = ("kl", "fisher")


@dataclass(frozen=True, eq=False)
class _Network:
    """The original with what was learned from it in one pass over the images."""

    captured: Captured
    statistics: Statistics
    original: nn.Module
    levels: tuple[float, ...]
    recording: Recording


def measure_sensitivities(
    run: Run | str | Path,
    data: object,
    *,
    model: nn.Module | None = None,
    fronts: Mapping[str, GroupFront] | None = None,
    images: int | None = None,
    levels: Sequence[float] = LEVELS,
    by: str = "kl",
    batch_images: int = 64,
    device: str = "cpu",
    on_event: OnEvent = ignore,
) -> dict[str, Sensitivity]:
    """Measure, for every group with a front, the loss of the network in which it alone is cut.

    Every group is committed as soon as it is measured: a killed call, repeated, goes on with the next. "fisher"
    looks at all groups in one pass, so a kill loses all of them.

    Args:
        run: with statistics and the fronts of all groups, as `solve` leaves them.
        data: the data set of the capture; images that the capture did not sample are taken if there are so many.
        model: the original; None builds it as the manifest says.
        fronts: committed ones, of the groups to measure; None for all groups that can be cut.
        images: how many to measure on; None for `affordable_images`.
        levels: held-out errors, ascending, at whose counts the loss is measured.
        by: "kl": forward passes of the cut network; "fisher": a prediction from gradients.
        batch_images: per forward pass.
        device: of the passes.

    Returns:
        by group, in nats per image, or relative to the variance where the outputs are no class logits.

    Raises:
        StageMissingError: statistics or fronts are not complete.
        UsageError: levels, images or a method that cannot be, or a merged run, whose images are elsewhere.
        RunMismatchError: other data or another model than the capture's.
        ModelError: the model's output is not one tensor; with "fisher", not class logits.
    """
    check_request(images, levels, by)
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    fronts = required_fronts(run, captured) if fronts is None else fronts
    statistics = Statistics(run).require(captured.manifest["layers"])
    original = original_model(run, model)
    images = affordable_images(captured, fronts, levels, by) if images is None else images
    sample, unseen = measuring_images(run, captured, data, images)
    if not unseen:
        on_event(Notice("sensitivity", f"too few unseen images: {len(sample)} of the calibration sample are used"))
    request = {
        "by": by, "images": len(sample), "unseen": unseen, "digest": sample.digest(), "levels": list(levels),
    }  # fmt: skip
    with run.lock(), recorded(run, "sensitivity", on_event) as on_event:
        found = found_sensitivities(run, fronts, request)
        if found:
            on_event(Reused("sensitivity", f"{len(found)} of {len(fronts)} groups"))
        todo = [front for name, front in fronts.items() if name not in found]
        if todo:
            network = _look_at(captured, statistics, original, sample, request, batch_images, device)
            request["measure"] = measure_of(network.recording.outputs[0])
            begin_sensitivities(run, request)
            found |= _measure(run, network, todo, request, on_event)
    return {name: found[name] for name in fronts}


def passes_of(fronts: Mapping[str, GroupFront], levels: Sequence[float], by: str) -> int:
    """Over all images, that measuring takes."""
    return sum(len(counts_at(front.held_out, levels)) for front in fronts.values()) if by == "kl" else 1


def affordable_images(
    captured: Captured, fronts: Mapping[str, GroupFront], levels: Sequence[float], by: str
) -> int:
    """As many unseen images as cost little, a power of two from 256 to 4,096; 256 for predictions from gradients.

    A cut changes a few images in a hundred, which a small sample may miss: of a LeNet at 80 % sparsity 256 images
    predict losses of 0.002 to 0.018 nats where 0.022 are lost, 4,096 predict 0.009 to 0.013; the plans that they
    choose lose 15 % less at 50 and 70 % sparsity, 7 % less at 80 and 90 %.
    """
    about = captured.manifest["data"]
    if by != "kl" or "length" not in about:
        return FEWEST_IMAGES
    most = min(
        _AFFORDABLE_MACS / max(passes_of(fronts, levels, by) * captured.costs.macs({}), 1),
        _AFFORDABLE_BYTES / (4 * max(prod(about["shape"]), 1)),
        about["length"] - about["images"],
        MOST_IMAGES,
    )
    return max(FEWEST_IMAGES, 1 << (max(int(most), 1).bit_length() - 1))


def check_request(images: int | None, levels: Sequence[float], by: str) -> None:
    """Refuse what cannot be measured.

    Raises:
        UsageError: no images, an unknown method, or levels that are not ascending between 0 and 1.
    """
    if images is not None and images < 1:
        raise UsageError("Nothing can be measured on no images.", expected="≥ 1", got=images, where="--images")
    if by not in METHODS:
        raise UsageError("Unknown method.", expected=" | ".join(METHODS), got=by, where="--by")
    inside = bool(levels) and all(0 < level < 1 for level in levels)
    if not inside or not all(first < second for first, second in pairwise(levels)):
        raise UsageError(
            "Levels are held-out relative errors.", expected="ascending numbers between 0 and 1",
            got=tuple(levels), where="--levels",
        )  # fmt: skip


def measuring_images(run: Run, captured: Captured, data: object, count: int) -> tuple[Images, bool]:
    """So many images that the capture did not sample, and True; of its sample, and False, where they are too few.

    The capture's sample is the beginning of a seeded order of the whole data set; these follow it.

    Raises:
        UsageError: a merged run.
        RunMismatchError: not the data set of the capture.
    """
    about = captured.manifest["data"]
    if about.get("sources") is not None:
        raise UsageError(
            "A merged run does not know its images: nothing can be measured on them.",
            expected="a run of one capture, and its data set",
            got=f"the statistics of {len(about['sources'])} captures",
            where=run.url,
            remedy="solve without sensitivities: the held-out errors stand in",
        )
    sample, everything = captured_images(about, data)
    unseen = everything.indices[about["images"] : about["images"] + count]
    if len(unseen) == count:
        return replace(everything, indices=unseen), True
    return replace(everything, indices=sample.indices[:count]), False


def required_fronts(run: Run, captured: Captured) -> dict[str, GroupFront]:
    """The fronts of all groups that can be cut, as `solve` left them.

    Raises:
        StageMissingError: names those that are not there.
    """
    whole = whole_groups(captured.graph, captured.manifest["layers"])
    names = [group.name for group in captured.graph.groups if group.name not in whole]
    records = {name: run.records.read(layout.front_key(name)) for name in names}
    missing = [name for name, one in records.items() if one is None]
    if missing:
        raise StageMissingError(
            "The fronts are not complete.",
            expected=f"fronts of {len(names)} groups",
            got=f"{len(names) - len(missing)}; missing: {', '.join(missing[:5])}",
            where=run.url,
            remedy="run `streamsparse solve` with any budget first (again: it resumes)",
        )
    return {name: GroupFront.from_arrays(r.arrays, r.description) for name, r in records.items() if r is not None}


def _look_at(
    captured: Captured,
    statistics: Statistics,
    original: nn.Module,
    sample: Images,
    request: dict[str, Any],
    batch_images: int,
    device: str,
) -> _Network:
    spans = [range(i, min(i + batch_images, len(sample))) for i in range(0, len(sample), batch_images)]
    batches: list[Tensor] = [batch.to(device) for batch in sample.batches(spans)]
    original.to(device)
    layers = captured.graph.layers
    recording = record(original, layers if request["by"] == "kl" else {}, batches)
    return _Network(captured, statistics, original, tuple(request["levels"]), recording)


def _measure(
    run: Run, network: _Network, fronts: Sequence[GroupFront], request: dict[str, Any], on_event: OnEvent
) -> dict[str, Sensitivity]:
    found = {}
    with reporting("sensitivity", len(fronts), "groups", on_event) as advance:
        one_by_one = (_cut_and_compare(network, front) for front in fronts)
        every = one_by_one if request["by"] == "kl" else _predict(network, fronts)
        for front, sensitivity in zip(fronts, every, strict=True):
            found[front.group] = sensitivity
            commit_sensitivity(run, sensitivity, front_identity(front), request)
            advance(1)
    return found


def _cut_and_compare(network: _Network, front: GroupFront) -> Sensitivity:
    """Loss of the really cut network at a few counts."""
    group, counts = network.captured.graph.group(front.group), counts_at(front.held_out, network.levels)
    losses = []
    for weights in _weights(network, group, [front.front.supports[count] for count in counts]):
        changed = with_weights(network.original, weights)
        outputs = list(replay(changed, list(weights), network.recording))
        losses.append(output_loss(network.recording.outputs, outputs))
    return Sensitivity(group.name, counts, tuple(losses))


def _weights(
    network: _Network, group: ChannelGroup, supports: Sequence[np.ndarray]
) -> list[dict[str, LayerWeights]]:
    """Refitted weights of the group's consumers, by layer, for every support."""
    graph = network.captured.graph
    weights: list[dict[str, LayerWeights]] = [{} for _ in supports]
    originals = Originals.of_model(network.original)
    for layer in dict.fromkeys(consumer.layer for consumer in group.consumers):
        geometry = graph.layers[layer]
        with blas_threads(geometry.columns):
            refits = LayerRefits.of(geometry, network.statistics[layer], originals.weight(geometry))
            for support, found in zip(supports, weights, strict=True):
                found[layer] = refits.at(kept_inputs(graph, {group.name: support.tolist()})[layer])
    return weights


def _predict(network: _Network, fronts: Sequence[GroupFront]) -> Iterator[Sensitivity]:
    """Losses of all groups from gradients, at the same counts."""
    counts = [counts_at(front.held_out, network.levels) for front in fronts]
    changes: list[LayerTensors] = []
    for front, own in zip(fronts, counts, strict=True):
        group = network.captured.graph.group(front.group)
        for weights in _weights(network, group, [front.front.supports[count] for count in own]):
            changes.append({layer: _tensors(network.original, layer, pair) for layer, pair in weights.items()})
    losses = iter(quadratic_losses(network.original, changes, network.recording.images))
    for front, own in zip(fronts, counts, strict=True):
        yield Sensitivity(front.group, own, tuple(islice(losses, len(own))))


def _tensors(model: nn.Module, layer: str, weights: LayerWeights) -> dict[str, Tensor]:
    """As parameters of the layer: of its dtype, on its device."""
    named = {name: array for name, array in zip(("weight", "bias"), weights, strict=True) if array is not None}
    module = model.get_submodule(layer)
    return {name: torch.from_numpy(array).to(getattr(module, name)) for name, array in named.items()}
