"""LeNet on MNIST: the demonstration, and the paper's tables 1 and 2 beside ours.

    uv run streamsparse demo                    two pruned networks in about a minute, offline
    uv run python -m pipelines.lenet_mnist      all four of the paper, fine-tuned at length

Both are the same experiment: one capture of the trained LeNet over embedded images (8,000 of them in the
demonstration, all 20,000 for the tables), one pass over what was captured, and then as many pruned networks as
wanted from those statistics alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import pipelines.mnist as mnist
from pipelines.lenet_recipes import FINE_TUNING, SHORT_FINE_TUNING
from pipelines.lenet_stages import Bench, baseline, fine_tuned, gather, location, one_shot, trained_lenet
from pipelines.lenet_tables import plan_of, print_comparison, print_plan, print_summary, write_results
from pipelines.lenet_targets import E1_FC_V1, E1_FC_V2, Baseline, PrunedLeNet, Settings, Target
from pipelines.training import Labelled
from streamsparse.cli.console import command, print_json
from streamsparse.events import OnEvent, ignore
from streamsparse.store import Run

TRAINING_IMAGES: Final = 50_000  # of 60,000; the others validated the training of the original
DEMO: Final = Settings((E1_FC_V1, E1_FC_V2), images=8000, recipe=SHORT_FINE_TUNING, independent=False)


def demo(
    run: str | Path | None = None,
    dry_run: bool = False,
    on_event: OnEvent = ignore,
    settings: Settings = DEMO,
) -> dict[str, Any]:
    """Prune the LeNet that comes with the package, from end to end, on the embedded images alone.

    Args:
        run: directory that keeps all stages' work; None keeps the checkpoints alone, in a temporary directory.
        dry_run: return the plan (shapes, bytes, networks) and touch nothing.
        on_event: hears of progress.
        settings: which networks, how many images, how to fine-tune.

    Returns:
        `{"baseline": ..., "models": [...], "seconds": {...}}`, see `experiment`; or `{"plan": ...}`.

    Raises:
        StreamsparseError: see the stages.
    """
    if dry_run:
        return plan_of(settings)
    return experiment(settings, mnist.calibration().tensors(), run, on_event)


def experiment(
    settings: Settings, tuning: Labelled, run: str | Path | None, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """Capture once, then prune, fine-tune and evaluate every target.

    Args:
        tuning: images, float32 (images, 1, 28, 28), and labels to fine-tune on.
        run: a directory that makes every stage resumable, or None.

    Returns:
        baseline: fields of `Baseline`; models: fields of `PrunedLeNet` for each target;
        seconds: wall time by stage.
    """
    with _run_at(run) as opened:
        bench = Bench(
            opened, trained_lenet(), mnist.calibration(), tuning, mnist.test().tensors(), on_event
        )  # fmt: skip
        gather(bench, settings)
        made = [_pruned(bench, target, settings) for target in settings.targets]
        return {
            "baseline": asdict(made[0][0]),
            "models": [asdict(network) for _, network in made],
            "seconds": bench.seconds,
        }


def _pruned(bench: Bench, target: Target, settings: Settings) -> tuple[Baseline, PrunedLeNet]:
    """One network: its weights as the statistics give them, then fine-tuned with every seed."""
    independent = one_shot(bench, target, "independent") if settings.independent else None
    found = one_shot(bench, target)
    recipes = [replace(settings.recipe, seed=seed) for seed in settings.tuning_seeds]
    tuned = {recipe.seed: fine_tuned(bench, target, recipe) for recipe in recipes}
    accuracy = found.comparison
    assert accuracy.original_accuracy is not None  # the test images have labels
    assert accuracy.pruned_accuracy is not None
    network = PrunedLeNet(
        name=target.name,
        channels=target.channels,
        parameters=found.pruned_costs.parameters,
        sparsity=1 - found.pruned_costs.parameters / found.original_costs.parameters,
        accuracy_one_shot=accuracy.pruned_accuracy,
        accuracy_independent=independent.comparison.pruned_accuracy if independent else None,
        accuracy_fine_tuned=tuned[settings.seed],
        accuracy_fine_tuned_by_seed=tuned,
        macs=found.pruned_costs.macs,
        bytes=len(bench.run.read_checkpoint(target.checkpoint())["model.safetensors"]),
        checkpoint=location(bench.run, target.checkpoint()),
        checkpoint_fine_tuned=location(bench.run, target.checkpoint(f"tuned-seed-{settings.seed}")),
    )
    return baseline(bench, accuracy.original_accuracy), network


@contextmanager
def _run_at(path: str | Path | None) -> Iterator[Run]:
    """The run at a path; or one in a temporary directory, of which the small parts stay (not after an error)."""
    if path is not None:
        yield Run.at(path)
        return
    directory = Path(tempfile.mkdtemp(prefix="streamsparse-lenet-"))
    try:
        run = Run.at(directory)
        yield run
        for bulky in ("activations", "statistics"):
            run.documents.delete(bulky)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def show(summary: dict[str, Any]) -> None:
    """Print what `demo` returned as tables on standard output."""
    if "plan" in summary:
        print_plan(summary)
    else:
        print_summary(summary)


def main(
    data_root: Annotated[Path | None, typer.Option(help="Directory of the complete MNIST (IDX files).")] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Embedded training images to capture over.")
    ] = mnist.EMBEDDED_TRAINING_IMAGES,
    seed: Annotated[int, typer.Option(help="Of the sample, and of the first fine-tuning.")] = 0,
    fine_tune_epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the training images.")
    ] = FINE_TUNING.epochs,
    repeats: Annotated[int, typer.Option(min=1, help="Fine-tunings of each network, with successive seeds.")] = 1,
    run: Annotated[str | None, typer.Option(help="Keep every stage's work here; the same command resumes.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write lenet_mnist.md and .json into this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and touch nothing.")] = False,
) -> None:
    """Reproduce the paper's LeNet tables: four pruned networks from one capture, beside its figures.

    Fine-tunes on 50,000 training images where the complete MNIST is found, else on the 20,000 embedded ones.
    Five to ten minutes on two cores.

    Examples:

        uv run python -m pipelines.lenet_mnist --run runs/lenet

        uv run python -m pipelines.lenet_mnist --data-root ~/data/MNIST/raw --repeats 3 --write pipelines/results
    """
    settings = Settings(
        images=images, seed=seed, recipe=replace(FINE_TUNING, epochs=fine_tune_epochs), repeats=repeats
    )
    with command(as_json) as bars:
        train_images, labels = mnist.load_mnist("train", data_root=data_root)
        tuning = mnist.Mnist(train_images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES])
        summary = plan_of(settings) if dry_run else experiment(settings, tuning.tensors(), run, bars)
    if dry_run:
        print_plan(summary)
    else:
        print_comparison(summary, settings.targets)
        print_summary(summary)
    if write is not None and not dry_run:
        write_results(write, summary, settings, len(tuning))
    if as_json:
        print_json(summary)


if __name__ == "__main__":
    typer.run(main)
