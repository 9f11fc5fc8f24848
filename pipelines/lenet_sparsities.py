"""LeNet on MNIST at any sparsity: the budget spent over all layers, fine-tuned with the original as the teacher.

    uv run python -m pipelines.lenet_sparsities --sparsity 0.9 --sparsity 0.95 [--repeats 3] [--write DIRECTORY]

The paper prunes conv1 and the linear layers by hand to 83 % sparsity. Here the allocation chooses for all four
groups, the first convolution's channels included: one capture, the effect of every group on the output, and for
each sparsity a few seconds of measuring whole cut networks (`streamsparse improve`).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer

import pipelines.mnist as mnist
from pipelines.lenet_mnist import TRAINING_IMAGES
from pipelines.lenet_recipes import FAR_TUNING
from pipelines.lenet_stages import STAGES, Bench, baseline, fine_tuned, gather, one_shot, trained_lenet
from pipelines.lenet_tables import NOTE, environment, page_foot, percent
from pipelines.lenet_targets import Settings, Target
from pipelines.pages import write_page
from pipelines.training import Labelled
from streamsparse.cli.console import command, print_json, print_table, say, size_text
from streamsparse.events import OnEvent, ignore
from streamsparse.improvement import improve
from streamsparse.intake.captured import read_captured
from streamsparse.sensitivity import measure_sensitivities
from streamsparse.solve import SolveSettings, find_fronts
from streamsparse.store import Run

SPARSITIES: Final = (0.8, 0.9, 0.95, 0.97)
UNSEEN_IMAGES: Final = 8000  # of the embedded ones: the capture leaves them for measuring
Rows = list[tuple[str, ...]]


def experiment(
    sparsities: tuple[float, ...], settings: Settings, tuning: Labelled, run: str | Path, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """Capture once; then for every sparsity choose, refit in order, evaluate, fine-tune and evaluate.

    Args:
        sparsities: fractions of the parameters that go.
        settings: calibration images, recipe and seeds; its targets are not used.
        tuning: images, float32 (images, 1, 28, 28), and labels to fine-tune on.
        run: a directory; the same call resumes.

    Returns:
        baseline, models and seconds, see DESIGN's machine-readable results; accuracies are fractions.
    """
    seconds = dict.fromkeys((*STAGES, "sensitivity", "improve"), 0.0)
    test = mnist.test().tensors()
    bench = Bench(Run.at(run), trained_lenet(), mnist.calibration(), tuning, test, on_event, seconds)
    gather(bench, settings)
    with bench.timed("solve"):
        find_fronts(bench.run, read_captured(bench.run), SolveSettings(), on_event)
    with bench.timed("sensitivity"):
        measure_sensitivities(
            bench.run, bench.calibration, model=bench.original, images=UNSEEN_IMAGES, on_event=on_event
        )
    models = [_network(bench, sparsity, settings) for sparsity in sparsities]
    return {
        "baseline": asdict(baseline(bench, models[0]["accuracy_original"])),
        "models": models,
        "seconds": seconds,
    }


def _network(bench: Bench, sparsity: float, settings: Settings) -> dict[str, Any]:
    with bench.timed("improve"):
        found = improve(
            bench.run, bench.calibration, budget=f"sparsity={sparsity}", model=bench.original, images=UNSEEN_IMAGES,
            on_event=bench.on_event,
        )  # fmt: skip
    counts = found.solution.plan.counts
    target = Target(f"sparsity-{sparsity:g}", counts, found.solution.plan.costs.parameters, 0.0, 0.0)
    evaluation = one_shot(bench, target)
    tuned = {seed: fine_tuned(bench, target, replace(settings.recipe, seed=seed)) for seed in settings.tuning_seeds}
    comparison = evaluation.comparison
    return {
        "name": target.name,
        "channels": counts,
        "parameters": evaluation.pruned_costs.parameters,
        "sparsity": 1 - evaluation.pruned_costs.parameters / evaluation.original_costs.parameters,
        "macs": evaluation.pruned_costs.macs,
        "bytes": len(bench.run.read_checkpoint(target.checkpoint())["model.safetensors"]),
        "measured_losses": found.losses,
        "accuracy_original": comparison.original_accuracy,
        "accuracy_one_shot": comparison.pruned_accuracy,
        "divergence_one_shot": comparison.divergence,
        "accuracy_fine_tuned": mean(tuned.values()),
        "accuracy_fine_tuned_by_seed": tuned,
    }


HEADINGS: Final = (
    "sparsity", "conv0", "conv1", "fc1", "fc2", "parameters", "MACs", "on disk", "one-shot", "fine-tuned", "lost",
)  # fmt: skip


def rows_of(summary: dict[str, Any]) -> Rows:
    """One row for each network under `HEADINGS`, the original first."""
    original = summary["baseline"]
    rows: Rows = [
        ("0 %", "6", "16", "120", "84", f"{original['parameters']:,}", f"{original['macs']:,}",
         size_text(original["bytes"]), percent(original["accuracy"]), "–", "–")
    ]  # fmt: skip
    for model in summary["models"]:
        channels = tuple(str(model["channels"][name]) for name in ("conv0", "conv1", "fc1", "fc2"))
        cost = (f"{model['parameters']:,}", f"{model['macs']:,}", size_text(model["bytes"]))
        found = list(model["accuracy_fine_tuned_by_seed"].values())
        spread = f" ({100 * min(found):.2f} to {100 * max(found):.2f})" if len(found) > 1 else ""
        lost = f"{100 * (original['accuracy'] - model['accuracy_fine_tuned']):.2f}"
        quality = (percent(model["accuracy_one_shot"]), percent(model["accuracy_fine_tuned"]) + spread, lost)
        rows.append((percent(model["sparsity"]), *channels, *cost, *quality))
    return rows


def markdown_page(summary: dict[str, Any], settings: Settings, tuning_images: int, typed: str) -> str:
    """The table as a page, with what it takes to repeat it."""
    rows = [HEADINGS, ("---:",) * len(HEADINGS), *rows_of(summary)]
    lines = [
        "# LeNet on MNIST at any sparsity",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"Accuracy on the 10,000 test images. One-shot: refitted in order from {settings.images:,} images without",
        f"their labels, nothing trained. Fine-tuned: {settings.recipe.epochs} epochs on {tuning_images:,} images, "
        "the original as",
        f"the teacher; mean over {settings.repeats} seed(s), in brackets their range. Lost: points.",
        "The paper's smallest LeNet loses 0.57 points at 83 % sparsity (its table 2, fine-tuned).",
        "",
        *page_foot(summary, typed),
    ]
    return "\n".join(lines) + "\n"


def main(
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Fraction of the parameters that goes; repeatable.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Directory of the complete MNIST (IDX files).")] = None,
    fine_tune_epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the training images.")
    ] = FAR_TUNING.epochs,
    repeats: Annotated[int, typer.Option(min=1, help="Fine-tunings of each network, with successive seeds.")] = 1,
    run: Annotated[str | None, typer.Option(help="Keep every stage's work here; the same command resumes.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write lenet_sparsities.md and .json here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """How small LeNet can get: any sparsity from one capture, one-shot and fine-tuned.

    Fine-tunes on 50,000 training images where the complete MNIST is found, else on the 20,000 embedded ones. Some
    two minutes per network and seed on two cores.
    """
    settings = Settings(
        images=len(mnist.calibration()) - UNSEEN_IMAGES, repeats=repeats,
        recipe=replace(FAR_TUNING, epochs=fine_tune_epochs),
    )  # fmt: skip
    wanted = tuple(sparsity or SPARSITIES)
    with command(as_json) as bars, TemporaryDirectory(prefix="streamsparse-lenet-") as temporary:
        images, labels = mnist.load_mnist("train", data_root=data_root)
        tuning = mnist.Mnist(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES])
        summary = experiment(wanted, settings, tuning.tensors(), run or temporary, bars)
    print_table("LeNet on MNIST at any sparsity", dict.fromkeys(HEADINGS, "right"), rows_of(summary))
    say(NOTE)
    if write is not None:
        options = " ".join(f"--sparsity {one:g}" for one in wanted)
        typed = (
            f"uv run python -m pipelines.lenet_sparsities {options} --repeats {repeats} --write pipelines/results"
        )
        record = {**summary, "environment": environment(), "command": typed}
        write_page(write, "lenet_sparsities", markdown_page(summary, settings, len(tuning), typed), record)
    if as_json:
        print_json(summary)


if __name__ == "__main__":
    typer.run(main)
