"""What all rows of `pipelines.one_shot` share: one capture, its fronts, what cutting each group does, the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pipelines.networks import Subjects
from streamsparse.accumulate import accumulate
from streamsparse.capture import CaptureSettings, Images, calibration_images, capture
from streamsparse.evaluate import Comparison
from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.kernels.entropic_path import PathPoint
from streamsparse.kernels.front import solve_front
from streamsparse.sensitivity import measure_sensitivities
from streamsparse.solve import GroupFront, SolveSettings
from streamsparse.solve.losses import predicted_losses
from streamsparse.solve.problems import group_problem
from streamsparse.solve.stage import find_fronts
from streamsparse.solve.threads import blas_threads
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics

SENSITIVITY_IMAGES = 256
TEST_BATCH = 250
SETTINGS = CaptureSettings(sink="statistics", batch_images=100, folds=5, products="float32")


@dataclass(frozen=True, eq=False)
class EntropicPath:
    """The paper's path of one group.

    Attributes:
        points: in the order of the walk.
        errors: training error of the best support of every count along it, (positions + 1,).
    """

    points: tuple[PathPoint, ...]
    errors: np.ndarray


@dataclass
class Clock:
    """Wall seconds by name, of the first call that came to the end of it (mutable).

    Attributes:
        keep: called whenever there is one more.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Time a piece of work; what an earlier call left of it takes next to nothing, and does not count."""
        started = perf_counter()
        yield
        self.seconds.setdefault(name, perf_counter() - started)
        self.keep()


@dataclass(frozen=True, eq=False)
class Bench:
    """One calibration sample of one network.

    Attributes:
        subjects: the network and its data.
        run: with statistics and fronts.
        captured: of the run.
        images: the calibration images.
        fronts: best of all methods, by group.
        losses: predicted divergence of the network with one group cut, by group and count.
        stages: passes of a sequential refit.
        clock: of what is made when a row asks for it.
        on_event: hears how the work goes.
        memory: weights that were found, by plan (mutable).
    """

    subjects: Subjects
    run: Run
    captured: Captured
    images: Images
    fronts: dict[str, GroupFront]
    losses: dict[str, np.ndarray]
    stages: int
    clock: Clock
    on_event: OnEvent = ignore
    memory: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def paths(self) -> dict[str, EntropicPath]:
        """The paper's, by group: walked when the first row asks for them, minutes on VGG-16."""
        assert self.run.directory is not None
        paths: dict[str, EntropicPath] = {}
        counting = reporting("entropic paths", len(self.fronts), "groups", self.on_event)
        with self.clock.timing("entropic paths"), counting as advance:
            for name in self.fronts:
                paths[name] = _path(self.run, self.captured, name, self.run.directory)
                advance(1)
        return paths

    def entropic_errors(self, group: str) -> np.ndarray:
        """Held-out errors of the path's supports: training errors, times held-out over training of the best."""
        front = self.fronts[group]
        ratios = front.held_out / np.maximum(front.front.errors, 1e-12)
        return np.asarray(self.paths[group].errors * np.maximum(ratios, 1.0))


def prepare(
    subjects: Subjects, folder: Path, *, images: int, seed: int, stages: int, clock: Clock, on_event: OnEvent
) -> Bench:
    """Everything that the budgets share; whatever lies in the folder is used again."""
    run = Run.at(folder)
    with clock.timing("capture"):
        data = subjects.calibration
        capture(subjects.model, data, run, images=images, seed=seed, settings=SETTINGS, on_event=on_event)
        accumulate(run, executor="serial", on_event=on_event)
    captured = read_captured(run)
    with clock.timing("fronts"):
        fronts = find_fronts(run, captured, SolveSettings("best"), on_event)
    with clock.timing("sensitivity"):
        measured = measure_sensitivities(
            run, subjects.calibration, model=subjects.model, images=SENSITIVITY_IMAGES, on_event=on_event
        )
    losses = predicted_losses(fronts, measured)
    sample = calibration_images(subjects.calibration, images=images, seed=seed)
    return Bench(subjects, run, captured, sample, fronts, losses, stages, clock, on_event)


def fisher_losses(bench: Bench) -> dict[str, np.ndarray]:
    """Predicted from gradients (Fisher information) instead of measured: in place of `losses`.

    A run keeps sensitivities of one kind: these lie in a run beside, which shares everything but the solution.
    """
    if "fisher" not in bench.memory:
        measured = measure_sensitivities(
            _beside(bench.run, "fisher"), bench.subjects.calibration, model=bench.subjects.model,
            fronts=bench.fronts, images=SENSITIVITY_IMAGES, by="fisher", on_event=bench.on_event,
        )  # fmt: skip
        bench.memory["fisher"] = predicted_losses(bench.fronts, measured)
    found: dict[str, np.ndarray] = bench.memory["fisher"]
    return found


def _beside(run: Run, name: str) -> Run:
    """The same capture, statistics and fronts, with a solution of its own."""
    assert run.directory is not None
    folder = run.directory.with_name(f"{run.directory.name}-{name}")
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for entry in run.directory.iterdir():
            if entry.name == "solution":
                shutil.copytree(entry, partial / entry.name)
            elif not entry.name.startswith("."):  # locks
                (partial / entry.name).symlink_to(Path("..") / run.directory.name / entry.name)
        partial.rename(folder)
    return Run.at(folder)


def _path(run: Run, captured: Captured, name: str, folder: Path) -> EntropicPath:
    """The walk of one group, from the file of an earlier call if there is one."""
    file = folder.with_name(f"{folder.name}-entropic") / f"{name}.npz"
    if not file.exists():
        group, statistics = captured.graph.group(name), Statistics(run)
        own = {consumer.layer: statistics[consumer.layer] for consumer in group.consumers}
        points: list[PathPoint] = []
        with blas_threads(max(captured.graph.layers[layer].columns for layer in own)):
            problem = group_problem(group, captured.graph.layers, own)
            front = solve_front(problem, method="entropic", on_iteration=points.append)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as opened:
            np.savez(
                opened, errors=front.errors, eps=np.array([(p.eps_l2, p.eps_h, p.w_steps) for p in points]),
                w=np.stack([p.w for p in points]), ranking=np.stack([p.ranking for p in points]),
            )  # fmt: skip
        partial.replace(file)
    with np.load(file) as found:
        rows = zip(found["eps"], found["w"], found["ranking"], strict=True)
        walk = tuple(PathPoint(float(eps[0]), float(eps[1]), w, order, int(eps[2])) for eps, w, order in rows)
        return EntropicPath(walk, found["errors"])


@dataclass(frozen=True, eq=False)
class Examination:
    """The first so many test images, and what the original says of them.

    Attributes:
        test: items are (image, label).
        images: how many.
        logits: of the original, (images, classes), float64.
        labels: (images,).
    """

    test: TensorDataset
    images: int
    logits: Tensor
    labels: Tensor

    @classmethod
    def of(cls, subjects: Subjects, images: int) -> Examination:
        """One pass of the original."""
        labels = torch.as_tensor(subjects.test[slice(0, images)][1])
        return cls(subjects.test, len(labels), _logits(subjects.model, subjects.test, len(labels)), labels)

    def of_pruned(self, model: nn.Module, images: int | None = None) -> Comparison:
        """As `streamsparse.evaluate.compare`, without running the original again; on the first `images`."""
        images = min(images or self.images, self.images)
        original, labels = self.logits[:images], self.labels[:images]
        logits = _logits(model, self.test, images)
        wanted, given = original.log_softmax(1), logits.log_softmax(1)
        right = [float((found.argmax(1) == labels).double().mean()) for found in (original, logits)]
        agreement = float((logits.argmax(1) == original.argmax(1)).double().mean())
        divergence = float((wanted.exp() * (wanted - given)).sum(1).mean())
        return Comparison(images, right[0], right[1], agreement, divergence)


def _logits(model: nn.Module, test: TensorDataset, images: int) -> Tensor:
    model = model.eval()
    with torch.inference_mode():
        spans = [slice(first, min(images, first + TEST_BATCH)) for first in range(0, images, TEST_BATCH)]
        return torch.cat([model(test[span][0]).double() for span in spans])
