"""How few calibration images are enough: LeNet on MNIST, and VGG-16 on Fashion-MNIST where it is at hand.

    uv run python -m pipelines.sample_size [--network lenet|vgg16] [--images N] [--write DIRECTORY]

One pass over the images. At 64, 128, 256, ... of them every layer is refitted on its working support (see
`streamsparse.solve.working`), which keeps as large a fraction of every channel group as half of the parameters
allow. Shown are, by number of images: training and held-out error of every layer by least squares, cross-validated
over five folds, with its standard error over the folds; the accuracy of the network with the weights that `solve`
makes on these supports, shrunk towards the original's, without any training; and where
`capture --until-converged TOL` would have stopped. The VGG-16 and its data are looked for in `shared/` beside the
repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from time import perf_counter
from typing import Annotated, Any, Final

import torch
import typer

from pipelines.networks import Subjects, accuracy, subjects_of
from pipelines.one_shot_tables import surroundings
from pipelines.pages import AS_JSON, THREADS, WRITE, publish
from pipelines.sample_size_tables import page
from streamsparse.adaptive import look_schedule
from streamsparse.capture import CaptureSettings, capture
from streamsparse.cli.console import command
from streamsparse.convergence import Judge, LayerLook, Request
from streamsparse.errors import DataError
from streamsparse.events import Notice, OnEvent, ignore
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.kernels.folds import FoldSums
from streamsparse.network.observation import whole_groups
from streamsparse.network.refitting import with_weights
from streamsparse.solve import kept_inputs
from streamsparse.solve.originals import Originals
from streamsparse.solve.refit import affordable_search, refit_layer
from streamsparse.solve.threads import blas_threads
from streamsparse.solve.working import refit_errors, working_support
from streamsparse.store import Run

TOLERANCES: Final = (0.01, 0.005, 0.002)
BUDGET: Final = 0.5
FOLDS: Final = 5
BATCH_IMAGES: Final = 64


class Stopped(Exception):  # noqa: N818  not a failure
    """The last look was taken: what would be stored is not needed."""


class Study:
    """Takes the looks of one pass (mutable)."""

    def __init__(self, subjects: Subjects, run: Run, images: int, test_images: int, on_event: OnEvent) -> None:
        self.subjects, self.run, self.test_images, self.on_event = subjects, run, test_images, on_event
        self.schedule = look_schedule(images, BATCH_IMAGES)
        self.looks: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.keep_fraction = 0.0

    def enough(self, images: int, statistics: Mapping[str, FoldSums]) -> bool:
        """At a look: supports, errors and weights of every layer, and the accuracy that they give."""
        if images in self.schedule:
            captured = read_captured(self.run)
            self.keep_fraction = self.keep_fraction or largest_fraction(captured)
            started = perf_counter()
            weights = self._look(captured, images, statistics)
            seconds = perf_counter() - started
            changed = with_weights(self.subjects.model, weights)
            found = accuracy(changed, self.subjects.test, self.test_images)
            self.points.append({"images": images, "accuracy": found, "look_seconds": seconds})
            self.on_event(Notice("look", f"{images:,} images: {found:.2%}, {seconds:.0f} s"))
        if images >= self.schedule[-1]:
            raise Stopped
        return False

    def end(self, images: int) -> None:
        """Never comes: the last look stops the pass."""

    def _look(self, captured: Captured, images: int, statistics: Mapping[str, FoldSums]) -> dict[str, Any]:
        weights: dict[str, Any] = {}
        keep: dict[str, list[int]] = {}
        whole = whole_groups(captured.graph, captured.manifest["layers"])
        originals = Originals.of_model(self.subjects.model)
        for group in captured.graph.groups:
            if group.name in whole:
                continue
            own = {consumer.layer: statistics[consumer.layer] for consumer in group.consumers}
            with blas_threads(max(captured.graph.layers[layer].columns for layer in own)):
                keep[group.name] = working_support(group, captured.graph.layers, own, self.keep_fraction).tolist()
                for layer, sums in own.items():
                    geometry, inputs = captured.graph.layers[layer], kept_inputs(captured.graph, keep)[layer]
                    found = refit_errors(geometry, sums, inputs)
                    search = affordable_search(geometry, len(inputs), len(sums))
                    fitted = refit_layer(geometry, sums, inputs, search, originals.weight(geometry))
                    weights[layer] = (fitted.weight, fitted.bias)
                    self.looks.append({"layer": layer, **asdict(LayerLook(images, **asdict(found)))})
        return weights


def largest_fraction(captured: Captured) -> float:
    """Of every group's positions, in hundredths, that half of the parameters allow."""
    whole = whole_groups(captured.graph, captured.manifest["layers"])
    groups = [group for group in captured.graph.groups if group.name not in whole]
    original = captured.costs.parameters({})
    for percent in range(100, 0, -1):
        counts = {group.name: max(1, round(percent / 100 * group.size)) for group in groups}
        if captured.costs.parameters(counts) <= BUDGET * original:
            return percent / 100
    raise DataError("No fraction of the channels meets the budget.", expected=f"≤ {BUDGET:.0%} of the parameters")


def study(name: str, images: int, test_images: int, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Every figure of one network."""
    subjects, run = subjects_of(name), Run.at("memory://")
    baseline = accuracy(subjects.model, subjects.test, test_images)
    taken = Study(subjects, run, images, test_images, on_event)
    settings = CaptureSettings(sink="statistics", batch_images=BATCH_IMAGES, folds=FOLDS, products="float32")
    with suppress(Stopped):
        capture(
            subjects.model, subjects.calibration, run, images=images, settings=settings, looks=taken,
            on_event=on_event,
        )  # fmt: skip
    captured = read_captured(run)
    return {
        "network": subjects.name,
        "parameters_kept": BUDGET,
        "keep_fraction": taken.keep_fraction,
        "baseline_accuracy": baseline,
        "test_images": test_images,
        "points": taken.points,
        "looks": taken.looks,
        "stops": {str(tolerance): stop(captured, taken, tolerance) for tolerance in TOLERANCES},
    }


def stop(captured: Captured, taken: Study, tolerance: float) -> dict[str, Any]:
    """Where the rule would have ended the capture, and at how many images each layer had converged."""
    request = Request(tolerance, taken.keep_fraction, taken.schedule[-1], 0, FOLDS)
    judge = Judge(captured, request)
    seen = [
        {**look, "training_error": None, "held_out_error": None}
        if not judge.fits(look["layer"], look["images"])
        else look
        for look in taken.looks
    ]
    judge = Judge(captured, request, seen)
    ended = next((images for images in taken.schedule if judge.converged(images)), None)
    layers = judge.convergence(taken.schedule[-1]).layers
    return {"images": ended, "layers": {layer.layer: layer.images for layer in layers}}


def main(
    network: Annotated[str, typer.Option(help="lenet, vgg16 or resnet18.")] = "lenet",
    images: Annotated[int, typer.Option(min=BATCH_IMAGES, help="Of the largest look.")] = 4096,
    test_images: Annotated[int, typer.Option(min=1, help="Test images.")] = 10_000,
    threads: THREADS = None,
    write: WRITE = None,
    as_json: AS_JSON = False,
) -> None:
    """How few calibration images are enough: errors of every layer and accuracy at 64, 128, 256, ... of them.

    A minute for LeNet on two cores, some twelve for VGG-16. Writes sample_size_NETWORK.md and .json.

    Example: uv run python -m pipelines.sample_size --network lenet --images 1024
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    with command(as_json) as bars:
        found = study(network, images, test_images, bars)
    about = surroundings()
    typed = f"uv run python -m pipelines.sample_size --network {network} --images {images}"
    text = page(found, about, f"{typed} --test-images {test_images} --write pipelines/results")
    publish(text, {"about": about, **found}, write, f"sample_size_{network}", as_json)


if __name__ == "__main__":
    typer.run(main)
