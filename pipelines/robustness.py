"""Are smaller networks more robust? Accuracy of the original and of what was pruned from it under FGSM and PGD.

    uv run python -m pipelines.resnet18_cifar10 --dataset fashion-mnist --run runs/resnet18     makes the networks
    uv run python -m pipelines.robustness --network resnet18 --dataset fashion-mnist --run runs/resnet18

The paper expects it of smaller networks and leaves it open (its section 4). White-box: every network is attacked
with its own gradients. Transfer: the images that fool the original are shown to the pruned networks.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Final

import torch
import typer
from safetensors.torch import load
from torch import Tensor, nn

import pipelines.mnist as mnist
from pipelines.cifar_data import ELSEWHERE, NORMALISATION, open_pictures
from pipelines.cifar_networks import RESNET18, VGG16
from pipelines.lenet import LeNet
from pipelines.pages import write_page
from pipelines.robustness_attacks import Attack, OnPixels, attacked, fgsm, pgd
from pipelines.robustness_tables import page, rows_of
from pipelines.training import Labelled
from streamsparse.cli.console import command, print_json, print_table
from streamsparse.errors import RunMismatchError, UsageError
from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.store import Run
from streamsparse.write.checkpoint import decode_checkpoint

BATCH: Final = 250
EPSILONS: Final = {
    "lenet": (8.0, 16.0, 32.0, 64.0),
    "vgg16": (1.0, 2.0, 4.0, 8.0),
    "resnet18": (1.0, 2.0, 4.0, 8.0),
}


@dataclass(frozen=True, eq=False)
class Contest:
    """What is attacked with what.

    Attributes:
        original: on pixels; pruned: by name.
        pixels, labels: test images in [0, 1].
        attacks: by name, such as "FGSM 4".
        device: of the passes.
    """

    original: OnPixels
    pruned: dict[str, OnPixels]
    pixels: Tensor
    labels: Tensor
    attacks: dict[str, Attack]
    device: str


def attacks_of(epsilons: Sequence[float], steps: int, step: float | None, seed: int) -> dict[str, Attack]:
    """FGSM and PGD for every ε (units of 1/255)."""
    found = {f"FGSM {epsilon:g}": fgsm(epsilon) for epsilon in epsilons}
    return found | {f"PGD {epsilon:g}": pgd(epsilon, steps, step, seed) for epsilon in epsilons}


def fought(contest: Contest, on_event: OnEvent = ignore) -> list[dict[str, Any]]:
    """Accuracies, as fractions: plain, white-box by attack, and by attack transferred from the original.

    Returns:
        one record for each network, the original (which has no transfer) first, then by size.
    """
    networks = {"original": contest.original, **contest.pruned}
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    order = sorted(networks, key=lambda name: (name != "original", -sizes[name], name))
    batches = -(-len(contest.labels) // BATCH)
    with reporting("attack", batches, "batches", on_event) as advance:
        counts: dict[tuple[str, str], int] = {}
        for pixels, labels in zip(
            torch.split(contest.pixels, BATCH), torch.split(contest.labels, BATCH), strict=True
        ):
            for key, right in _batch(contest, networks, pixels, labels).items():
                counts[key] = counts.get(key, 0) + right
            advance(1)
    shares = {key: right / len(contest.labels) for key, right in counts.items()}
    return [
        {
            "name": name,
            "parameters": sizes[name],
            "sparsity": 1 - sizes[name] / sizes["original"],
            "accuracy": shares[name, "plain"],
            "white_box": {attack: shares[name, attack] for attack in contest.attacks},
            "transfer": {attack: shares[name, f"from original {attack}"] for attack in contest.attacks}
            if name != "original" else None,
        }
        for name in order
    ]  # fmt: skip


def _batch(
    contest: Contest, networks: dict[str, OnPixels], pixels: Tensor, labels: Tensor
) -> dict[tuple[str, str], int]:
    """How many are right, by network and what was done to the images."""
    pixels, labels = pixels.to(contest.device), labels.to(contest.device)
    counts = {}
    for name, network in networks.items():
        network.to(contest.device).eval()
        counts[name, "plain"] = _right(network, pixels, labels)
    for attack, how in contest.attacks.items():
        for name, network in networks.items():  # the original first
            found = attacked(network, pixels, labels, how)
            counts[name, attack] = _right(network, found, labels)
            if network is contest.original:
                for other in contest.pruned:
                    counts[other, f"from original {attack}"] = _right(networks[other], found, labels)
    return counts


@torch.no_grad()
def _right(network: nn.Module, pixels: Tensor, labels: Tensor) -> int:
    return int((network(pixels).argmax(1) == labels).sum())


def contest_of(
    network: str, dataset: str, folder: Path, test: Labelled, scale: tuple[Sequence[float], Sequence[float]],
    attacks: dict[str, Attack], device: str,
) -> Contest:  # fmt: skip
    """The original and all checkpoints of a run.

    Args:
        folder: a run, or the directory of a recipe's `--run` that holds one.
        test: normalised images and labels; scale: mean and standard deviation that they were normalised with.

    Raises:
        UsageError: no checkpoints there.
        RunMismatchError: the run was made with another data set.
    """
    run = Run.at(folder / "run" if (folder / "run").is_dir() else folder)
    names = run.documents.names("checkpoints") if run.exists else []
    recorded = run.manifest()["data"]["spec"] if names else None
    if recorded and "cifar_data:dataset" in recorded and f"spec={dataset}" not in recorded:
        raise RunMismatchError(
            "This run was made with other images.", expected=recorded, got=dataset, where="--dataset",
            remedy="name the data set that the networks were made with",
        )  # fmt: skip
    if not names:
        raise UsageError(
            "There are no pruned networks.", expected="a run with checkpoints", got="none", where=folder,
            remedy=f"make some first, for example with pipelines.{RECIPE_OF[network]} --run {folder}",
        )  # fmt: skip
    weights = load(run.weights())
    classes = len(weights[f"{NETWORKS[network].head}.weight"]) if network in NETWORKS else 10
    channels = test[0].shape[1]

    def on_pixels(model: nn.Module) -> OnPixels:
        return OnPixels(model.eval(), *scale, channels)

    original = fresh(network, classes)
    original.load_state_dict(weights)
    found = {name: decode_checkpoint(run.read_checkpoint(name), fresh(network, classes)) for name in names}
    whole = on_pixels(original)
    pruned = {name: on_pixels(model) for name, model in found.items()}
    return Contest(whole, pruned, whole.pixels_of(test[0]), test[1], attacks, device)


NETWORKS: Final = {"vgg16": VGG16, "resnet18": RESNET18}
RECIPE_OF: Final = {"lenet": "lenet_sparsities", "vgg16": "vgg16_cifar10", "resnet18": "resnet18_cifar10"}


def fresh(network: str, classes: int) -> nn.Module:
    """Untrained and whole."""
    return NETWORKS[network].fresh(classes) if network in NETWORKS else LeNet()


def test_images(network: str, dataset: str, data_root: Path | None, images: int) -> tuple[Labelled, Any, str]:
    """The first so many test images, normalised; mean and deviation that undo it; network and data in words."""
    if network == "lenet":
        pixels, labels = mnist.test().tensors()
        return (pixels[:images], labels[:images]), NORMALISATION["mnist"], "LeNet on MNIST"
    pictures = open_pictures(dataset, data_root)
    pixels, labels = pictures.test
    scale = NORMALISATION.get(dataset, (ELSEWHERE.mean, ELSEWHERE.std))
    return (pixels[:images], labels[:images]), scale, f"{NETWORKS[network].title} on {pictures.title}"


def main(
    run: Annotated[Path, typer.Option(help="Run with the pruned networks, or directory of a recipe's --run.")],
    network: Annotated[str, typer.Option(help="lenet, vgg16 or resnet18.")] = "resnet18",
    dataset: Annotated[str, typer.Option(help="As the networks were made with; LeNet has MNIST.")] = "cifar10",
    data_root: Annotated[Path | None, typer.Option(help="Where named data sets lie.", show_default="data")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images.")] = 1000,
    epsilon: Annotated[list[float] | None, typer.Option(help="Largest change, of 255; repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of PGD.")] = 10,
    step_size: Annotated[float | None, typer.Option(help="Of PGD, of 255.", show_default="2.5 ε / steps")] = None,
    seed: Annotated[int, typer.Option(help="Of PGD's start.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    write: Annotated[Path | None, typer.Option(help="Write robustness_NETWORK.md and .json here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Accuracy of the original and of every pruned network in a run, under attack.

    Example: uv run python -m pipelines.robustness --network lenet --run runs/lenet-sparsities
    """
    started = perf_counter()
    with command(as_json) as bars:
        if network not in RECIPE_OF:
            raise UsageError("There is no such network.", expected=", ".join(RECIPE_OF), got=network)
        test, scale, title = test_images(network, dataset, data_root, images)
        attacks = attacks_of(epsilon or EPSILONS[network], steps, step_size, seed)
        models = fought(contest_of(network, dataset, run, test, scale, attacks, device), bars)
    step = "2.5 ε / steps" if step_size is None else f"{step_size:g}"
    summary = {"network": network, "title": title, "dataset": "mnist" if network == "lenet" else dataset,
               "images": len(test[1]), "steps": steps, "step": step, "device": device, "baseline": models[0],
               "models": models, "seconds": {"attack": perf_counter() - started}}  # fmt: skip
    heading, *rows = rows_of(models)
    print_table(f"{title} under attack", dict.fromkeys(heading, "right"), rows)
    if write is not None:
        parts = ["uv", "run", "python", "-m", "pipelines.robustness", "--network", network, "--dataset", dataset]
        parts += ["--images", str(images), "--steps", str(steps), "--seed", str(seed), "--run", "RUN"]
        parts += [part for value in epsilon or () for part in ("--epsilon", f"{value:g}")]
        write_page(write, f"robustness_{network}", page(summary, shlex.join(parts)), summary)
    if as_json:
        print_json(summary)


if __name__ == "__main__":
    typer.run(main)
