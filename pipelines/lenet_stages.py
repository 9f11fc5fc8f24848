"""The stages of streamsparse on LeNet: one capture, any number of pruned networks, each resumable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from time import perf_counter
from typing import Any, Final, Literal

import torch
from safetensors.torch import load
from torch.utils.data import TensorDataset

import pipelines.mnist as mnist
from pipelines.lenet import LeNet
from pipelines.lenet_recipes import taught_by
from pipelines.lenet_targets import Baseline, Settings, Target
from pipelines.recipe import Recipe
from pipelines.training import Labelled, fine_tune
from streamsparse.accumulate import accumulate
from streamsparse.capture import Subject, capture
from streamsparse.errors import CheckpointError, StageMissingError
from streamsparse.evaluate import compare
from streamsparse.evaluation import Evaluation, evaluate
from streamsparse.events import Advanced, Event, Finished, Notice, OnEvent, Reused, Started
from streamsparse.intake.captured import read_captured
from streamsparse.network.weights import weights_digest
from streamsparse.sequential import refit
from streamsparse.solve import solve
from streamsparse.store import Run, layout
from streamsparse.write.checkpoint import decode_checkpoint, encode_checkpoint, verify_checkpoint
from streamsparse.write.description import CONFIG_FILE
from streamsparse.write.stage import write

STAGES: Final = ("capture", "accumulate", "solve", "refit", "write", "evaluate", "fine_tune")
SUBJECT: Final = Subject("pipelines.lenet:LeNet", "pipelines.mnist:calibration")
Mode = Literal["independent", "sequential"]


@dataclass(frozen=True, eq=False)
class Bench:
    """What all networks of one experiment share.

    Attributes:
        tuning: images and labels to fine-tune on.
        seconds: wall time by stage, summed over the networks.
    """

    run: Run
    original: LeNet
    calibration: mnist.Mnist
    tuning: Labelled
    test: Labelled
    on_event: OnEvent
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the wall time of the body to `stage`."""
        started = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - started


def trained_lenet() -> LeNet:
    """The LeNet that comes with the package, in evaluation mode."""
    model = LeNet()
    model.load_state_dict(load((files("pipelines") / "data" / "lenet_mnist.safetensors").read_bytes()))
    return model.eval()


def gather(bench: Bench, settings: Settings) -> None:
    """Capture and accumulate: the only passes whose cost grows with the images, once for all networks."""
    run, on_event = bench.run, bench.on_event
    with bench.timed("capture"):
        capture(
            bench.original,
            bench.calibration,
            run,
            images=settings.images,
            seed=settings.seed,
            subject=SUBJECT,
            on_event=on_event,
        )
    with bench.timed("accumulate"):
        accumulate(run, on_event=on_event)


def one_shot(bench: Bench, target: Target, mode: Mode = "sequential") -> Evaluation:
    """Solve, refit in order (unless independent), write; then evaluate what was written."""
    run, name = bench.run, target.checkpoint("" if mode == "sequential" else mode)
    on_event = renamed(bench.on_event, target.checkpoint() if mode == "sequential" else name)
    if _holds(run, name, target, mode):
        on_event(Reused("write", f"the checkpoint {name}"))
    else:
        with bench.timed("solve"):
            solution = solve(run, channels=target.channels, on_event=on_event)
        if mode == "sequential":
            with bench.timed("refit"):
                refit(
                    run, bench.calibration, model=bench.original, on_event=_one_bar(on_event, solution.plan.sizes)
                )
        with bench.timed("write"):
            write(run, model=bench.original, name=name, on_event=on_event)
    with bench.timed("evaluate"):
        return evaluate(run, TensorDataset(*bench.test), model=bench.original, name=name, on_event=on_event)


def fine_tuned(bench: Bench, target: Target, recipe: Recipe) -> float:
    """Tune the written one-shot network, write that too, and return the accuracy of what was written."""
    run, name = bench.run, target.checkpoint(f"tuned-seed-{recipe.seed}")
    on_event = renamed(bench.on_event, target.checkpoint())
    start = run.read_checkpoint(target.checkpoint())
    provenance = _provenance(start, recipe, bench.tuning)
    if _tuned_as(run, name) == provenance:
        on_event(Reused("fine_tune", f"the checkpoint {name}"))
    else:
        with bench.timed("fine_tune"):
            model = decode_checkpoint(start, LeNet())
            fine_tune(model, bench.tuning, recipe, distillation=taught_by(bench.original), on_event=on_event)
        with bench.timed("write"):
            _write_tuned(bench, name, model, start, provenance)
    with bench.timed("evaluate"):
        tuned = decode_checkpoint(run.read_checkpoint(name), LeNet())
        found = compare(bench.original, tuned, TensorDataset(*bench.test), on_event=on_event)
    assert found.pruned_accuracy is not None  # the test images have labels
    return found.pruned_accuracy


def baseline(bench: Bench, accuracy: float) -> Baseline:
    """The original network's figures."""
    whole = read_captured(bench.run).costs.costs({})
    return Baseline(accuracy, whole.parameters, whole.macs, len(bench.run.weights()))


def location(run: Run, name: str) -> str:
    """Path of a checkpoint's directory."""
    return f"{run.url}/{layout.checkpoint_prefix(name)}"


def renamed(on_event: OnEvent, network: str) -> OnEvent:
    """Every stage's name with that of the network that it works for."""

    def relay(event: Event) -> None:
        on_event(replace(event, stage=f"{event.stage} {network}"))

    return relay


def _one_bar(on_event: OnEvent, groups: dict[str, int]) -> OnEvent:
    """One bar for all passes of a refit in order, which makes one for each group's consumer."""
    on_event(Started("refit", len(groups), "layers"))

    def relay(event: Event) -> None:
        if isinstance(event, Reused | Notice):
            on_event(event)
        elif isinstance(event, Finished) and event.stage == "refit":
            on_event(Advanced("refit", 1))

    return relay


def _description(run: Run, name: str) -> Any:
    """Of a whole checkpoint in the run, or None."""
    try:
        found = run.read_checkpoint(name)
    except StageMissingError:
        return None
    return verify_checkpoint(found)[0] if CONFIG_FILE in found else None  # the configuration is written last


def _holds(run: Run, name: str, target: Target, mode: Mode) -> bool:
    found = _description(run, name)
    if found is None:
        return False
    counts = {group: len(positions) for group, positions in found.config.kept.items()}
    wanted = {**found.config.original_sizes, **target.channels}
    return counts == wanted and found.config.statistics.get("refit") == mode


def _provenance(start: dict[str, bytes], recipe: Recipe, tuning: Labelled) -> dict[str, Any]:
    digest = weights_digest({"images": tuning[0], "labels": tuning[1]})
    began = verify_checkpoint(start)[0].weights_digest
    return {"recipe": asdict(recipe), "images": len(tuning[1]), "data_digest": digest, "began_with": began}


def _tuned_as(run: Run, name: str) -> Any:
    found = _description(run, name)
    return None if found is None else found.config.statistics.get("fine_tuning")


def _write_tuned(
    bench: Bench, name: str, model: torch.nn.Module, start: dict[str, bytes], provenance: dict[str, Any]
) -> None:
    """Write the tuned network as a checkpoint like any other, and see that it loads as it is."""
    config = verify_checkpoint(start)[0].config
    statistics = {**config.statistics, "fine_tuning": provenance}
    encoded = encode_checkpoint(model, replace(config, statistics=statistics, created=None))
    with bench.run.lock():
        bench.run.write_checkpoint(name, encoded, last=CONFIG_FILE)
    loaded = decode_checkpoint(bench.run.read_checkpoint(name), LeNet()).eval()
    images = bench.test[0][:1000]
    with torch.inference_mode():
        same = torch.equal(model.eval()(images), loaded(images))
    if not same:
        raise CheckpointError(
            "The loaded network computes something else than the one that was written.",
            expected="the same logits bit for bit",
            got="different logits",
            where=location(bench.run, name),
            remedy="Do not use this checkpoint; report it as a bug of streamsparse.",
        )
