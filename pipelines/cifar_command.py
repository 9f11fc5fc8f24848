"""Options that the CIFAR recipes share, and what they do with them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from pipelines.cifar_data import open_pictures
from pipelines.cifar_experiment import Request, chosen_cuts, experiment, plan_of
from pipelines.cifar_networks import FINE_TUNING, TRAINING, Network
from pipelines.cifar_rows import without_places
from pipelines.cifar_stages import TEACHERS_SHARE, Settings
from pipelines.cifar_tables import print_plan, print_summary, write_results
from pipelines.pages import AS_JSON, RUN, THREADS, WRITE
from pipelines.recipe import Recipe
from streamsparse.cli.console import command, print_json, say
from streamsparse.errors import UsageError

DATASET = Annotated[
    str, typer.Option(help="cifar10, fashion-mnist, mnist, imagefolder:PATH, npz:PATH ...; taken at 32×32 pixels.")
]
DATA_ROOT = Annotated[
    Path | None, typer.Option(help="Where named data sets lie, or are downloaded to.", show_default="data")
]
WEIGHTS = Annotated[
    Path | None,
    typer.Option(
        help="Trained original (safetensors); else from shared/models if it is for these data, else train."
    ),
]
CUT = Annotated[list[str] | None, typer.Option(help="One of the paper's cuts; repeatable.", show_default="all")]
SPARSITY = Annotated[
    list[float] | None, typer.Option(help="Fraction that goes, from all layers freely; repeatable.")
]
COUNTS = Annotated[
    Path | None, typer.Option(help='JSON {"CUT": {"GROUP": COUNT}}: channels kept, instead of a choice.')
]
IMAGES = Annotated[int, typer.Option(min=10, help="Calibration images, without labels.")]
UNSEEN = Annotated[int, typer.Option(min=10, help="Further images that losses of cut networks are measured on.")]
ROUNDS = Annotated[
    int, typer.Option(min=0, help="Rounds of moving channels between layers; 0: as the predicted losses have it.")
]
STAGES = Annotated[
    int | None, typer.Option(min=1, help="Passes of the refit in order.", show_default="one per layer")
]
SEED = Annotated[int, typer.Option(help="Of the calibration sample and of every training.")]
EPOCHS = Annotated[int, typer.Option(min=1, help="Of the original's training.")]
TUNE = Annotated[int, typer.Option(min=0, help="Of fine-tuning each network; 0 for none. The paper: 5 to 50.")]
RATE = Annotated[float, typer.Option(help="Of fine-tuning; a hundredth of the training's in the paper.")]
TUNE_ORIGINAL = Annotated[
    bool, typer.Option("--tune-original", help="Fine-tune the original too: what longer training gains by itself.")
]
ONE_CYCLE = Annotated[bool, typer.Option("--one-cycle", help="Fine-tune with a rate that goes up and down once.")]
SHARE = Annotated[
    float, typer.Option(min=0, max=1, help="Of the original as teacher in fine-tuning; the labels have the rest.")
]
SCRATCH = Annotated[int, typer.Option(min=0, help="Epochs of each pruned network from fresh weights; 0 for none.")]
MIXED = Annotated[
    bool, typer.Option("--mixed-precision", help="Train in bfloat16: for CUDA, and processors that multiply it.")
]
DEVICE = Annotated[str, typer.Option(help="cpu, cuda or cuda:N, for everything.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Print the plan and touch nothing.")]


@dataclass(frozen=True)
class Options:
    """What was typed; see the options of the same names."""

    dataset: str
    data_root: Path | None
    weights: Path | None
    cut: Sequence[str]
    sparsity: Sequence[float]
    counts: Path | None
    images: int
    unseen_images: int
    rounds: int
    stages: int | None
    seed: int
    epochs: int
    fine_tune_epochs: int
    fine_tune_rate: float
    tune_original: bool
    one_cycle: bool
    teacher_share: float
    from_scratch: int
    mixed_precision: bool
    device: str
    threads: int | None
    run: Path | None
    write: Path | None
    as_json: bool
    dry_run: bool


def command_of(network: Network, name: str, text: str) -> Callable[..., None]:
    """The command of a recipe.

    Args:
        name: of the recipe's module and of the files of `--write`.
        text: what `--help` says above the options.
    """

    def main(
        dataset: DATASET = "cifar10",
        data_root: DATA_ROOT = None,
        weights: WEIGHTS = None,
        cut: CUT = None,
        sparsity: SPARSITY = None,
        counts: COUNTS = None,
        images: IMAGES = 2000,
        unseen_images: UNSEEN = 512,
        rounds: ROUNDS = 8,
        stages: STAGES = None,
        seed: SEED = 0,
        epochs: EPOCHS = TRAINING.epochs,
        fine_tune_epochs: TUNE = FINE_TUNING.epochs,
        fine_tune_rate: RATE = FINE_TUNING.learning_rate,
        tune_original: TUNE_ORIGINAL = False,
        one_cycle: ONE_CYCLE = False,
        teacher_share: SHARE = TEACHERS_SHARE,
        from_scratch: SCRATCH = 0,
        mixed_precision: MIXED = False,
        device: DEVICE = "cpu",
        threads: THREADS = None,
        run: RUN = None,
        write: WRITE = None,
        as_json: AS_JSON = False,
        dry_run: DRY_RUN = False,
    ) -> None:
        options = Options(
            dataset, data_root, weights, cut or [], sparsity or [], counts, images, unseen_images, rounds, stages,
            seed, epochs, fine_tune_epochs, fine_tune_rate, tune_original, one_cycle, teacher_share, from_scratch,
            mixed_precision, device, threads, run, write, as_json, dry_run,
        )  # fmt: skip
        run_recipe(network, name, options)

    main.__doc__ = text
    return main


def run_recipe(network: Network, name: str, options: Options) -> None:
    """Do what was typed.

    Args:
        name: of the recipe's module and of the files of `--write`.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with command(options.as_json) as bars, TemporaryDirectory(prefix=f"streamsparse-{network.name}-") as temporary:
        request = request_of(network, options)
        if options.dry_run:
            summary: dict[str, Any] = {"plan": plan_of(request)}
        else:
            pictures = open_pictures(options.dataset, options.data_root)
            summary = experiment(request, pictures, options.run or Path(temporary), bars)
    if options.dry_run:
        print_plan(summary["plan"])
    else:
        if options.run is None:
            summary = without_places(summary)
            say("The networks are not kept: give --run for that.")
        print_summary(summary, request)
    if options.write is not None and not options.dry_run:
        write_results(options.write, result_name(name, options), summary, request, typed(name, options))
    if options.as_json:
        print_json(summary)


def request_of(network: Network, options: Options) -> Request:
    """Validated.

    Raises:
        UsageError: cuts, sparsities, counts or recipes that cannot be.
    """
    training = replace(
        TRAINING, epochs=options.epochs, seed=options.seed, device=options.device,
        mixed_precision=options.mixed_precision, flip=options.dataset != "mnist",  # digits have a side
    )  # fmt: skip
    tuning: Recipe | None = None
    if options.fine_tune_epochs:
        tuning = replace(
            training, epochs=options.fine_tune_epochs, learning_rate=options.fine_tune_rate,
            one_cycle=options.one_cycle, cosine=not options.one_cycle,
        )  # fmt: skip
    settings = Settings(
        images=options.images, seed=options.seed, unseen_images=options.unseen_images, rounds=options.rounds,
        stages=options.stages, training=training, tuning=tuning, tune_original=options.tune_original,
        teacher_share=options.teacher_share, scratch_epochs=options.from_scratch, device=options.device,
    )  # fmt: skip
    cuts = chosen_cuts(network, options.cut, options.sparsity, read_counts(options.counts))
    return Request(network, cuts, options.dataset, options.data_root, options.weights, settings)


def read_counts(file: Path | None) -> dict[str, dict[str, int]]:
    """Channels kept, by cut and group.

    Raises:
        UsageError: no file, or another form.
    """
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text())
        return {str(cut): {str(group): int(count) for group, count in own.items()} for cut, own in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            "The counts cannot be read.", expected='JSON {"CUT": {"GROUP": COUNT}}', got=error, where=file
        ) from error


def result_name(name: str, options: Options) -> str:
    """Of the files that are written: the recipe's, the data set's if another, and what alone was asked for."""
    parts = [name]
    if options.dataset != "cifar10":
        parts += ["on", options.dataset.partition(":")[0].replace("-", "_")]
    if bool(options.cut) != bool(options.sparsity):
        names = [*options.cut, *(f"sparsity-{value:g}" for value in options.sparsity)]
        kind = "cuts" if options.cut else "sparsities"
        parts.append(re.sub("[^A-Za-z0-9.]+", "_", names[0] if len(names) == 1 else kind).strip("_"))
    return "_".join(parts)


def typed(name: str, options: Options) -> str:
    """The command that repeats the experiment, without the places of files on this machine."""
    parts = ["uv", "run", "python", "-m", f"pipelines.{name}", "--dataset", _without_place(options.dataset)]
    parts += [part for cut in options.cut for part in ("--cut", cut)]
    parts += [part for value in options.sparsity for part in ("--sparsity", f"{value:g}")]
    for option in ("images", "unseen_images", "rounds", "seed", "epochs", "fine_tune_epochs", "fine_tune_rate",
                   "teacher_share", "from_scratch", "device"):  # fmt: skip
        parts += ["--" + option.replace("_", "-"), f"{getattr(options, option)}"]
    parts += ["--stages", f"{options.stages}"] if options.stages else []
    parts += ["--tune-original"] if options.tune_original else []
    parts += ["--one-cycle"] if options.one_cycle else []
    parts += ["--mixed-precision"] if options.mixed_precision else []
    parts += ["--counts", options.counts.name] if options.counts else []
    parts += ["--weights", options.weights.name] if options.weights else []
    return shlex.join([*parts, "--write", "pipelines/results"])


def _without_place(spec: str) -> str:
    kind, colon, path = spec.partition(":")
    return f"{kind}{colon}{Path(path).name}" if colon else kind
