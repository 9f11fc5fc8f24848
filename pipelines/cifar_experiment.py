"""The whole experiment on one network: every cut, one-shot, fine-tuned and from scratch; or its plan beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from pipelines.cifar_cuts import groups_of
from pipelines.cifar_data import Pictures, is_there, root_of
from pipelines.cifar_networks import Network, original, weights_at_hand
from pipelines.cifar_paper import Cut
from pipelines.cifar_stages import Bench, Settings, gather, one_shot
from pipelines.cifar_tuning import from_scratch, original_tuned, recipe_in_words, tuned, tuning_in_words
from streamsparse.capture import plan_stream
from streamsparse.errors import UsageError
from streamsparse.events import OnEvent, ignore
from streamsparse.intake.captured import read_captured
from streamsparse.network import find_groups
from streamsparse.network.costs import cost_model


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        network: see there; cuts: of it.
        dataset, data_root: see `pipelines.cifar_data.open_pictures`.
        weights: of the original; None: see `pipelines.cifar_networks.weights_at_hand`.
        settings: how.
    """

    network: Network
    cuts: tuple[Cut, ...]
    dataset: str
    data_root: Path | None
    weights: Path | None
    settings: Settings


def chosen_cuts(
    network: Network, names: Sequence[str], sparsities: Sequence[float], counts: dict[str, dict[str, int]]
) -> tuple[Cut, ...]:
    """The paper's cuts by name, and free choices at sparsities; all of both if neither is given.

    Args:
        counts: channels kept, by cut and group: instead of a choice within the cut's sparsity.

    Raises:
        UsageError: an unknown cut, or a sparsity outside (0, 1).
    """
    known = {cut.name: cut for cut in network.cuts}
    if unknown := [name for name in (*names, *counts) if name not in known]:
        raise UsageError("There is no such cut.", expected=", ".join(known), got=", ".join(unknown), where="--cut")
    if outside := [value for value in sparsities if not 0 < value < 1]:
        raise UsageError("A sparsity is a fraction.", expected="0 < X < 1", got=outside, where="--sparsity")
    nothing = not names and not sparsities
    paper = [known[name] for name in (known if nothing else dict.fromkeys(names))]
    free = network.sparsities if nothing else tuple(dict.fromkeys(sparsities))
    made = [Cut(c.name, c.layers, c.sparsity, c.printed, counts.get(c.name, {})) for c in paper]
    return (*made, *(Cut(f"sparsity-{value:g}", (), value) for value in free))


def experiment(request: Request, pictures: Pictures, folder: Path, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Train or read the original, capture once, then make every cut.

    Args:
        folder: keeps everything; the same call goes on from whatever a killed one left.

    Returns:
        baseline, models and seconds, see DESIGN's machine-readable results; accuracies are fractions.

    Raises:
        StreamsparseError: see the stages.
    """
    settings, started = request.settings, perf_counter()
    whole = original(
        request.network, pictures, request.weights, settings.training, folder / "training", on_event
    )  # fmt: skip
    trained = perf_counter() - started
    bench = Bench(folder, request.network, whole, pictures, settings, on_event)
    bench.seconds["train"] = trained
    gather(bench)
    models = [
        {"name": cut.name, **one_shot(bench, cut), **tuned(bench, cut), **from_scratch(bench, cut)}
        for cut in request.cuts
    ]
    costs = read_captured(bench.run).costs.costs({})
    return {
        "baseline": {
            "accuracy": models[0]["accuracy_original"],
            "parameters": costs.parameters,
            "macs": costs.macs,
            "bytes": len(bench.run.weights()),
            "origin": whole.origin,
            "accuracy_by_epoch": [epoch.validation_accuracy for epoch in whole.epochs],
            **original_tuned(bench),
        },
        "models": models,
        "seconds": bench.seconds,
        "data": {"name": pictures.title, "training": len(pictures.training[1]), "test": len(pictures.test[1])},
    }


def plan_of(request: Request) -> dict[str, Any]:
    """What `experiment` would do. Reads no data, downloads nothing, touches nothing."""
    settings, network = request.settings, request.network
    model = network.fresh().eval()
    example = torch.zeros(1, 3, 32, 32)
    graph = find_groups(model, example)
    costs = cost_model(model, graph, example).costs({})
    file = weights_at_hand(network, request.dataset, request.weights)
    stream = plan_stream(model, graph, example, settings.images, settings.capturing)
    layers = [
        {
            "layer": layer.geometry.layer,
            "input_shape": layer.geometry.input_shape,
            "output_shape": layer.geometry.output_shape,
            "columns": layer.geometry.columns,
        }
        for layer in stream.layers
    ]
    return {
        "network": network.title,
        "dataset": request.dataset,
        "data": str(root_of(request.dataset, request.data_root)),
        "download": not is_there(request.dataset, request.data_root),
        "original": f"weights from {file.name}" if file else f"trained: {recipe_in_words(settings.training)}",
        "images": settings.images,
        "layers": layers,
        "baseline": asdict(costs),
        "models": [
            {
                "name": cut.name,
                "sparsity": None if cut.counts else cut.sparsity,
                "parameters": None if cut.counts else int((1 - cut.sparsity) * costs.parameters),
                "groups": {g.name: cut.counts.get(g.name, g.size) for g in groups_of(graph, cut)},
            }
            for cut in request.cuts
        ],
        "fine_tuning": tuning_in_words(settings.tuning, settings.teacher_share),
        "from_scratch_epochs": settings.scratch_epochs,
    }
