"""The stages of `pipelines.imagenet_torchvision`: images are read from files batch by batch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from pipelines.cifar_rows import kept_row, timed
from pipelines.cifar_stages import LATENCY_BATCHES, one_bar
from pipelines.lenet_stages import renamed
from streamsparse.accumulate import accumulate
from streamsparse.capture import CaptureSettings, Subject, capture
from streamsparse.errors import DataError, UsageError
from streamsparse.evaluation import Evaluation, evaluate
from streamsparse.events import Notice, OnEvent, ignore
from streamsparse.improvement import improve
from streamsparse.intake.captured import read_captured
from streamsparse.intake.data import open_data
from streamsparse.intake.images import FileImages
from streamsparse.intake.models import build_model
from streamsparse.intake.preprocessing import Preprocessing, choose_preprocessing
from streamsparse.intake.weights import load_weights
from streamsparse.network.weights import weights_digest
from streamsparse.sensitivity import measure_sensitivities
from streamsparse.sequential import refit
from streamsparse.solve import SolveSettings, find_fronts
from streamsparse.store import Run
from streamsparse.write.stage import write

BATCH: Final = 32  # images per pass: 224 pixels fill memory faster than 32
STAGES: Final = ("capture", "accumulate", "solve", "sensitivity", "improve", "refit", "write", "evaluate")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        model: of torchvision, with options such as "resnet18?num_classes=10"; weights: its file.
        data, test: specifications, see `streamsparse.intake.data`; size: side of the images, None for the model's.
        images, unseen_images: of the calibration sample, and of measured losses.
        test_images: a sample of so many; None for all.
        sparsities: fractions of the parameters that go; rounds: of `improve`; passes: of the refit in order.
    """

    model: str
    weights: Path | None
    data: str
    test: str
    size: int | None
    images: int
    unseen_images: int
    test_images: int | None
    sparsities: tuple[float, ...]
    rounds: int
    passes: int
    seed: int
    device: str
    workers: int

    @property
    def spec(self) -> str:
        return f"torchvision:{self.model}"

    @property
    def preprocessing(self) -> Preprocessing:
        return choose_preprocessing(self.spec, size=None if self.size is None else str(self.size))


@dataclass(frozen=True, eq=False)
class Bench:
    """What all networks share: the run, the trained original, images by loader, seconds by stage (mutable)."""

    request: Request
    folder: Path
    model: nn.Module
    calibration: DataLoader[Any]
    test: Dataset[Any]
    on_event: OnEvent
    seconds: dict[str, float]

    @property
    def run(self) -> Run:
        return Run.at(self.folder / "run")

    @property
    def capturing(self) -> CaptureSettings:
        return CaptureSettings(sink="statistics", batch_images=BATCH, device=self.request.device)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Count the wall time of the body to `stage`."""
        return timed(self.seconds, stage)


def experiment(request: Request, folder: Path, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Capture once, then make a network for every sparsity.

    Args:
        folder: keeps everything; the same call goes on from whatever a killed one left.

    Returns:
        baseline, models and seconds, see DESIGN's machine-readable results; accuracies are fractions.
    """
    if request.weights is None:
        raise UsageError(
            "An untrained network is not worth pruning.", expected="a file of trained weights", got="none",
            where="--weights", remedy="the beginning of pipelines/imagenet_torchvision.py says how to make one",
        )  # fmt: skip
    model = build_model(request.spec)
    for note in load_weights(model, request.weights):
        on_event(Notice("weights", note))
    calibration, test = opened(request)
    loader = DataLoader(calibration, num_workers=request.workers)
    bench = Bench(request, folder, model.eval(), loader, test, on_event, dict.fromkeys(STAGES, 0.0))
    gather(bench)
    models = [one_shot(bench, sparsity) for sparsity in request.sparsities]
    costs = read_captured(bench.run).costs.costs({})
    baseline = {"accuracy": models[0]["accuracy_original"], **asdict(costs), "bytes": len(bench.run.weights())}
    return {"baseline": baseline, "models": models, "seconds": bench.seconds}


def opened(request: Request) -> tuple[Dataset[Any], Dataset[Any]]:
    """Calibration images, and the test images or a seeded sample of them.

    Raises:
        DataError: the test images have no labels, or are the calibration images.
    """
    calibration = open_data(request.data, split="train", preprocessing=request.preprocessing)
    dataset = open_data(request.test, split="test", preprocessing=request.preprocessing)
    if isinstance(dataset, FileImages) and dataset.paths == getattr(calibration, "paths", None):
        raise DataError(
            "The test images are the calibration images.", expected="other files", got=request.test, where="--test",
            remedy="give --test, or a folder that holds `train` and `val`",
        )  # fmt: skip
    if not isinstance(dataset[0], tuple):
        raise DataError(
            "The test images have no labels.", expected="one subdirectory per class", got="images alone",
            where=request.test,
        )  # fmt: skip
    count = len(dataset)  # type: ignore[arg-type]
    if request.test_images is None or request.test_images >= count:
        return calibration, dataset
    order = torch.randperm(count, generator=torch.Generator().manual_seed(request.seed))
    return calibration, Subset(dataset, sorted(order[: request.test_images].tolist()))


def gather(bench: Bench) -> None:
    """Statistics, the best support of every count, and what cutting each group does to the output."""
    request, run, on_event = bench.request, bench.run, bench.on_event
    size = None if request.size is None else str(request.size)
    with bench.timed("capture"):
        capture(
            bench.model, bench.calibration, run, images=request.images, seed=request.seed, settings=bench.capturing,
            subject=Subject(request.spec, request.data, {"size": size}), on_event=on_event,
        )  # fmt: skip
    with bench.timed("accumulate"):
        accumulate(run, executor="serial", on_event=on_event)
    with bench.timed("solve"):
        find_fronts(run, read_captured(run), SolveSettings(), on_event)
    with bench.timed("sensitivity"):
        measure_sensitivities(
            run, bench.calibration, model=bench.model, images=request.unseen_images, batch_images=BATCH,
            device=request.device, on_event=on_event,
        )  # fmt: skip


def one_shot(bench: Bench, sparsity: float) -> dict[str, Any]:
    """The row of one sparsity."""
    request = bench.request
    asked = {
        "sparsity": sparsity, "original": weights_digest(bench.model.state_dict()), "data": request.data,
        "test": [request.test, request.test_images], "images": [request.images, request.unseen_images],
        "size": request.size, "seed": request.seed, "rounds": request.rounds, "passes": request.passes,
    }  # fmt: skip
    name = f"sparsity-{sparsity:g}"
    made = kept_row(
        bench.folder, name, asked, bench.seconds, lambda: _cut(bench, name, sparsity), bench.on_event
    )  # fmt: skip
    return {"name": name, **made}


def _cut(bench: Bench, name: str, sparsity: float) -> dict[str, Any]:
    request, run, on_event = bench.request, bench.run, renamed(bench.on_event, name)
    with bench.timed("improve"):
        improved = improve(
            run, bench.calibration, budget=f"sparsity={sparsity}", model=bench.model, rounds=request.rounds,
            images=request.unseen_images, batch_images=BATCH, device=request.device, on_event=on_event,
        )  # fmt: skip
    with bench.timed("refit"):
        refit(
            run, bench.calibration, model=bench.model, stages=request.passes, settings=bench.capturing,
            on_event=one_bar(on_event, request.passes),
        )  # fmt: skip
    bench.model.cpu()
    with bench.timed("write"):
        write(run, model=bench.model, name=name, on_event=on_event)
    with bench.timed("evaluate"):
        found = evaluate(
            run, bench.test, model=bench.model, name=name, data_name=request.test, batch_images=BATCH,
            device=request.device, latency_batch_sizes=LATENCY_BATCHES, on_event=on_event,
        )  # fmt: skip
    return _figures(bench, found, improved.losses)


def _figures(bench: Bench, found: Evaluation, losses: tuple[float, ...]) -> dict[str, Any]:
    before, after, latency = found.original_costs, found.pruned_costs, found.latency
    assert latency is not None  # it was asked for
    pairs = zip(latency.batch_sizes, latency.original_seconds, latency.pruned_seconds, strict=True)
    return {
        "parameters": after.parameters,
        "sparsity": 1 - after.parameters / before.parameters,
        "macs": after.macs,
        "bytes": len(bench.run.read_checkpoint(found.name)["model.safetensors"]),
        "accuracy_original": found.comparison.original_accuracy,
        "accuracy_one_shot": found.comparison.pruned_accuracy,
        "accuracy_fine_tuned": None,
        "agreement_one_shot": found.comparison.agreement,
        "divergence_one_shot": found.comparison.divergence,
        "test_images": found.comparison.images,
        "speed_up": {str(size): original / own for size, original, own in pairs},
        "measured_losses": losses,
        "checkpoint": str(bench.folder / "run" / "checkpoints" / found.name),
    }
