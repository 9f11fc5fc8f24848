"""Train the LeNet that comes with the package: `uv run python -m pipelines.train_lenet`.

The paper's recipe: Adam, learning rate 0.001 halved every 7 epochs, 20 epochs, five sixths of the training
images to train on (50,000 of 60,000) and the last sixth to validate. The last epoch's weights are kept. With
several seeds, the network with the best validation accuracy is kept; the test set chooses nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from pipelines.lenet import LeNet
from pipelines.lenet_recipes import TRAINING
from pipelines.mnist import Mnist, load_embedded, load_mnist
from pipelines.recipe import Epoch, Recipe
from pipelines.training import Labelled, accuracy, train_classifier
from streamsparse.errors import StreamsparseError, UsageError
from streamsparse.events import Advanced, Event, OnEvent, Started, ignore

VALIDATION_SHARE = 6  # one training image in so many is held back


@dataclass(frozen=True)
class TrainedLeNet:
    """A trained network and how good it is.

    Attributes:
        model: in evaluation mode, on the CPU.
        recipe: with the seed it was trained with.
        training_images: how many it was trained on.
        validation_accuracy: fraction of the images held back.
        epochs: one record for each.
    """

    model: LeNet
    recipe: Recipe
    training_images: int
    validation_accuracy: float
    epochs: tuple[Epoch, ...]


def split_validation(data: Labelled) -> tuple[Labelled, Labelled]:
    """The first five sixths of the images to train on, and the last sixth to validate."""
    images, labels = data
    count = len(labels) - len(labels) // VALIDATION_SHARE
    return (images[:count], labels[:count]), (images[count:], labels[count:])


def train_lenet(data: Labelled, recipe: Recipe, *, on_event: OnEvent = ignore) -> TrainedLeNet:
    """Train one LeNet from the starting weights that `recipe.seed` draws.

    Args:
        data: normalised MNIST, float32 (images, 1, 28, 28), and labels; the last sixth is held back.
        recipe: how to train.
        on_event: hears of progress by batches.

    Raises:
        DataError: there are no images to train on, or none to validate.
    """
    training, validation = split_validation(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LeNet()
    epochs = train_classifier(model, training, recipe, validation=validation, on_event=on_event)
    measured = accuracy(model, validation, device=recipe.device)
    return TrainedLeNet(model.cpu(), recipe, len(training[1]), measured, tuple(epochs))


def main(
    data_root: Annotated[Path | None, typer.Option(help="Directory of the complete MNIST (IDX files).")] = None,
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")] = Path("lenet_mnist.safetensors"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = TRAINING.epochs,
    seed: Annotated[list[int], typer.Option(help="Repeat to train several networks and keep the best.")] = [0],  # noqa: B006
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; part of what makes a run repeatable.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Train LeNet on MNIST with the paper's recipe.

    About two minutes for each seed on one core with all 60,000 training images.

    Examples:

        uv run python -m pipelines.train_lenet --out my-lenet.safetensors

        uv run python -m pipelines.train_lenet --data-root ~/data/MNIST/raw --seed 0 --seed 1 --seed 2
    """
    torch.set_num_threads(threads)
    started = perf_counter()
    console = Console(stderr=True)
    try:
        _check_writable(out)
        data = Mnist(*load_mnist("train", data_root=data_root)).tensors()
        recipes = [replace(TRAINING, epochs=epochs, seed=number, device=device) for number in seed]
        trained = [_shown(data, recipe, console) for recipe in recipes]
    except StreamsparseError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(error.exit_status) from error
    best = max(trained, key=lambda network: network.validation_accuracy)
    test_accuracy = accuracy(best.model, Mnist(*load_embedded("test")).tensors())
    save_file(best.model.state_dict(), out)
    seconds = perf_counter() - started
    typer.echo(f"seed {best.recipe.seed}: test accuracy {test_accuracy:.2%}, written to {out}")
    if as_json:
        typer.echo(json.dumps(_summary(best, trained, test_accuracy, out, seconds)))


def _shown(data: Labelled, recipe: Recipe, console: Console) -> TrainedLeNet:
    with Progress(console=console) as progress:
        bar = progress.add_task(f"seed {recipe.seed}")

        def on_event(event: Event) -> None:
            if isinstance(event, Started):
                progress.update(bar, total=event.total)
            elif isinstance(event, Advanced):
                progress.advance(bar, event.amount)

        trained = train_lenet(data, recipe, on_event=on_event)
    typer.echo(f"seed {recipe.seed}: validation accuracy {trained.validation_accuracy:.2%}")
    return trained


def _check_writable(out: Path) -> None:
    """Minutes of training should not end in a mistyped path."""
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(
            "the network cannot be written there",
            expected="a file in an existing directory",
            got=out,
            where="--out",
            remedy="make the directory, or choose another file",
        )


def _summary(
    best: TrainedLeNet, trained: list[TrainedLeNet], test_accuracy: float, out: Path, seconds: float
) -> dict[str, object]:
    return {
        "accuracy": test_accuracy,
        "validation_accuracy_by_seed": {
            str(network.recipe.seed): network.validation_accuracy for network in trained
        },
        "recipe": asdict(best.recipe),
        "training_images": best.training_images,
        "epochs": [asdict(epoch) for epoch in best.epochs],
        "checkpoint": str(out),
        "torch": torch.__version__,
        "seconds": seconds,
    }


if __name__ == "__main__":
    typer.run(main)
