"""The stages of streamsparse on the CIFAR networks: one capture, then any number of pruned networks from it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from pipelines.cifar_cuts import checkpoint_name, constraints_of, local_sparsity, width
from pipelines.cifar_data import Pictures, dataset_spec
from pipelines.cifar_networks import FINE_TUNING, TRAINING, Network, Original
from pipelines.cifar_paper import Cut
from pipelines.cifar_rows import kept_row, timed
from pipelines.lenet_stages import renamed
from pipelines.recipe import Recipe
from streamsparse.accumulate import accumulate
from streamsparse.capture import CaptureSettings, Subject, capture
from streamsparse.evaluation import Evaluation, evaluate
from streamsparse.events import Advanced, Event, Finished, Notice, OnEvent, Reused, Started
from streamsparse.improvement import improve
from streamsparse.intake.captured import read_captured
from streamsparse.sensitivity import measure_sensitivities
from streamsparse.sequential import refit
from streamsparse.solve import SolveSettings, find_fronts, solve
from streamsparse.store import Run
from streamsparse.write.checkpoint import decode_checkpoint
from streamsparse.write.stage import write

STAGES: Final = (
    "train", "capture", "accumulate", "solve", "sensitivity", "improve", "refit", "write", "evaluate", "fine_tune",
    "from_scratch",
)  # fmt: skip
TEACHERS_SHARE: Final = 0.9
LATENCY_BATCHES: Final = (1, 32)


@dataclass(frozen=True)
class Settings:
    """How one experiment is made.

    Attributes:
        images: of the calibration sample; seed: of the sample and of every training.
        unseen_images: other training images, on which losses of cut networks are measured.
        rounds: of `improve`; 0 for the plan of least predicted loss.
        stages: passes of the refit in order; None for one per layer.
        training, tuning: recipes; a tuning of None is left out.
        tune_original: fine-tune the original with the same recipe, to compare with.
        teacher_share: of the original's teaching in the loss of its pruned versions while they are tuned, 0 to 1.
        scratch_epochs: of training each pruned architecture from fresh weights; 0 for none.
        device: of all passes; batch_images: per calibration pass.
    """

    images: int = 2000
    seed: int = 0
    unseen_images: int = 512
    rounds: int = 8
    stages: int | None = None
    training: Recipe = field(default=TRAINING)
    tuning: Recipe | None = field(default=FINE_TUNING)
    tune_original: bool = False
    teacher_share: float = TEACHERS_SHARE
    scratch_epochs: int = 0
    device: str = "cpu"
    batch_images: int = 100

    @property
    def capturing(self) -> CaptureSettings:
        return CaptureSettings(sink="statistics", batch_images=self.batch_images, device=self.device)


@dataclass(frozen=True, eq=False)
class Bench:
    """What all networks of one experiment share.

    Attributes:
        folder: of everything: the run in `run`, trainings, finished rows.
        seconds: wall time by stage, summed over the networks and over the calls that this one goes on from.
    """

    folder: Path
    network: Network
    original: Original
    pictures: Pictures
    settings: Settings
    on_event: OnEvent
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def run(self) -> Run:
        return Run.at(self.folder / "run")

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Count the wall time of the body to `stage`."""
        return timed(self.seconds, stage)

    def fresh(self) -> nn.Module:
        """The untrained original, whole."""
        return self.network.fresh(self.pictures.classes)


def gather(bench: Bench) -> None:
    """Everything that the cuts share: statistics, the best support of every count, what cutting each group does."""
    run, settings, model, data = bench.run, bench.settings, bench.original.model, bench.pictures.calibration
    ten = bench.pictures.classes == 10  # the constructors' own number
    subject = Subject(
        bench.network.spec if ten else None, dataset_spec(bench.pictures.spec, bench.pictures.data_root)
    )
    with bench.timed("capture"):
        capture(
            model, data, run, images=settings.images, seed=settings.seed, settings=settings.capturing,
            subject=subject, on_event=bench.on_event,
        )  # fmt: skip
    with bench.timed("accumulate"):
        accumulate(run, executor="serial", on_event=bench.on_event)
    with bench.timed("solve"):
        find_fronts(run, read_captured(run), SolveSettings(), bench.on_event)
    with bench.timed("sensitivity"):
        measure_sensitivities(
            run, data, model=model, images=settings.unseen_images, device=settings.device, on_event=bench.on_event
        )


def one_shot(bench: Bench, cut: Cut) -> dict[str, Any]:
    """Choose the channels, refit in order, write, evaluate: the row of a network that nothing trained."""
    settings = bench.settings
    asked = {
        "cut": asdict(replace(cut, printed=None)),
        "original": bench.original.digest, "data": bench.pictures.digest,
        "images": [settings.images, settings.unseen_images], "seed": settings.seed, "rounds": settings.rounds,
        "stages": settings.stages,
    }  # fmt: skip
    return kept_row(
        bench.folder, checkpoint_name(cut), asked, bench.seconds, lambda: _cut(bench, cut), bench.on_event
    )


def _cut(bench: Bench, cut: Cut) -> dict[str, Any]:
    run, settings, original, name = bench.run, bench.settings, bench.original.model, checkpoint_name(cut)
    on_event = renamed(bench.on_event, name)
    losses = _choose(bench, cut, on_event)
    with bench.timed("refit"):
        refit(
            run, bench.pictures.calibration, model=original, stages=settings.stages, settings=settings.capturing,
            on_event=one_bar(on_event, settings.stages or len(read_captured(run).graph.groups)),
        )  # fmt: skip
    original.cpu()
    with bench.timed("write"):
        write(run, model=original, name=name, on_event=on_event)
    with bench.timed("evaluate"):
        found = evaluate(
            run, bench.pictures.examined, model=original, name=name, data_name=bench.pictures.title,
            device=settings.device, latency_batch_sizes=LATENCY_BATCHES, on_event=on_event,
        )  # fmt: skip
    return {**_figures(bench, cut, found), "measured_losses": losses}


def _choose(bench: Bench, cut: Cut, on_event: OnEvent) -> tuple[float, ...]:
    """Commit the plan; the losses that were measured on the way to it."""
    run, settings = bench.run, bench.settings
    if cut.counts:
        with bench.timed("solve"):
            solve(run, channels=cut.counts, on_event=on_event)
        return ()
    budget, constraints = f"sparsity={cut.sparsity}", constraints_of(read_captured(run).graph, cut)
    if not settings.rounds:
        with bench.timed("solve"):
            solve(run, budget=budget, constraints=constraints, on_event=on_event)
        return ()
    with bench.timed("improve"):
        return improve(
            run, bench.pictures.calibration, budget=budget, model=bench.original.model, constraints=constraints,
            rounds=settings.rounds, images=settings.unseen_images, device=settings.device, on_event=on_event,
        ).losses  # fmt: skip


def _figures(bench: Bench, cut: Cut, found: Evaluation) -> dict[str, Any]:
    files = bench.run.read_checkpoint(found.name)
    pruned = decode_checkpoint(files, bench.fresh())
    before, after = found.original_costs, found.pruned_costs
    latency = found.latency
    assert latency is not None  # it was asked for
    pairs = zip(latency.batch_sizes, latency.original_seconds, latency.pruned_seconds, strict=True)
    graph = read_captured(bench.run).graph
    return {
        "parameters": after.parameters,
        "sparsity": 1 - after.parameters / before.parameters,
        "local_sparsity": local_sparsity(bench.original.model, pruned, cut),
        "macs": after.macs,
        "bytes": len(files["model.safetensors"]),
        "channels": {group.name: width(pruned, group) for group in graph.groups},
        "accuracy_original": found.comparison.original_accuracy,
        "accuracy_one_shot": found.comparison.pruned_accuracy,
        "divergence_one_shot": found.comparison.divergence,
        "agreement_one_shot": found.comparison.agreement,
        "speed_up": {str(size): original / own for size, original, own in pairs},
        "latency_threads": latency.threads,
        "checkpoint": str(bench.folder / "run" / "checkpoints" / found.name),
    }


def one_bar(on_event: OnEvent, groups: int) -> OnEvent:
    """One bar for a refit in order, whose passes would each draw their own."""
    on_event(Started("refit", groups, "groups"))

    def relay(event: Event) -> None:
        if isinstance(event, Reused | Notice):
            on_event(event)
        elif isinstance(event, Finished) and event.stage == "refit":
            on_event(Advanced("refit", 1))

    return relay
