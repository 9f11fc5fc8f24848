"""One capture for every budget, or a new one for each: how much is there to gain?

    uv run python -m pipelines.transfer [--network lenet|vgg16|resnet18] [--sparsity 0.5 --sparsity 0.7 ...]
        [--seeds 2] [--run DIRECTORY] [--write DIRECTORY]

Statistics of the original serve any budget. Pruning in steps instead takes every network out of the one of the
milder budget before it, with a capture, a search and sensitivities of its own. Three ways to the same sizes are
compared, nothing trained, no label read:

    one capture                  channels and weights from the statistics of the original
    one capture, refit in order  the same channels; weights on what the pruned layers before give
    in steps                     captured, searched and refitted in order anew, from the network before

Each network is examined on the test images: accuracy, mean Kullback–Leibler divergence of its class probabilities
from the original's, and agreement with the original's classes; and the seconds that it took. With `--run` a killed
call, typed again, goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, Final

import torch
import typer
from torch import nn
from torch.utils.data import Subset

from pipelines.networks import Subjects, checked_sparsities, subjects_of
from pipelines.one_shot_tables import surroundings
from pipelines.pages import AS_JSON, RUN, THREADS, WRITE, publish
from pipelines.transfer_tables import page
from streamsparse.capture import CaptureSettings
from streamsparse.cli.console import command
from streamsparse.evaluate import compare
from streamsparse.events import Notice, OnEvent, ignore, reporting
from streamsparse.kernels.front import Method
from streamsparse.run import Result, prune
from streamsparse.solve import SolveSettings

SPARSITIES: Final = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97)
ALONE, IN_ORDER, IN_STEPS = "one capture", "one capture, refit in order", "in steps"
WAYS: Final = (ALONE, IN_ORDER, IN_STEPS)


@dataclass(frozen=True)
class Request:
    """What is compared.

    Attributes:
        network: name in `pipelines.networks.NETWORKS`.
        images: of each calibration sample.
        sparsities: fractions of the original's parameters that go, rising.
        seeds: calibration samples.
        stages: passes of a refit in order; None for one per layer.
        test_images: the first so many.
        method: of finding supports, see `SolveSettings`.
    """

    network: str
    images: int
    sparsities: tuple[float, ...]
    seeds: int
    stages: int | None
    test_images: int
    method: Method = "best"


def study(request: Request, folder: Path, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Every figure."""
    subjects, rows = subjects_of(request.network), []
    with reporting("networks", request.seeds * len(request.sparsities) * len(WAYS), "pruned", on_event) as advance:
        for seed in range(request.seeds):
            for row in _rows(request, subjects, folder, seed, on_event):
                rows.append(row)
                advance(1)
    parameters = sum(parameter.numel() for parameter in subjects.model.parameters())
    return {
        "network": subjects.name,
        "request": asdict(request),
        "original_parameters": parameters,
        "original_accuracy": rows[0]["original_accuracy"],
        "rows": rows,
    }


def _rows(
    request: Request, subjects: Subjects, folder: Path, seed: int, on_event: OnEvent
) -> Iterator[dict[str, Any]]:
    original, before = subjects.model, subjects.model
    parameters = sum(parameter.numel() for parameter in original.parameters())
    whole = folder / f"seed-{seed}" / "original"
    for sparsity in request.sparsities:
        budget = f"params={int((1 - sparsity) * parameters)}"
        own = folder / f"seed-{seed}" / f"before-{sparsity:g}"
        for way, model, run, stages in (
            (ALONE, original, whole, 1),
            (IN_ORDER, original, whole, request.stages),
            (IN_STEPS, before, own, request.stages),
        ):
            started = perf_counter()
            result = _pruned(request, subjects, model, run, budget, stages, seed, on_event)
            seconds = perf_counter() - started
            if way == IN_STEPS:
                before = result.model
            row = {"way": way, "sparsity": sparsity, "seed": seed, "seconds": seconds,
                   **_examined(request, subjects, result)}  # fmt: skip
            text = f"{row['pruned_accuracy']:.2%}, KL {row['divergence']:.4f}, {row['parameters']:,} parameters"
            on_event(Notice(f"{way} to {sparsity:g}", text))
            yield row


def _pruned(
    request: Request,
    subjects: Subjects,
    model: nn.Module,
    run: Path,
    budget: str,
    stages: int | None,
    seed: int,
    on_event: OnEvent,
) -> Result:
    return prune(
        model, subjects.calibration, budget=budget, run=run, images=request.images, seed=seed, stages=stages,
        capture_settings=CaptureSettings(sink="statistics"), solve_settings=SolveSettings(request.method),
        on_event=on_event,
    )  # fmt: skip


def _examined(request: Request, subjects: Subjects, result: Result) -> dict[str, Any]:
    test = Subset(subjects.test, range(request.test_images))
    found = compare(subjects.model, result.model, test).to_json()
    return {
        **found,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "counts": dict(result.solution.plan.counts),
    }


def main(
    network: Annotated[str, typer.Option(help="lenet, vgg16 or resnet18.")] = "lenet",
    images: Annotated[int, typer.Option(min=10, help="Of each calibration sample.")] = 4096,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Fraction of the original's parameters that goes; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Calibration samples.")] = 2,
    stages: Annotated[
        int | None, typer.Option(min=1, help="Passes of the refit in order.", show_default="one per layer")
    ] = None,
    method: Annotated[Method, typer.Option(help="Of finding channels.")] = "best",
    test_images: Annotated[int, typer.Option(min=1, help="Test images.")] = 10_000,
    threads: THREADS = None,
    run: RUN = None,
    write: WRITE = None,
    as_json: AS_JSON = False,
) -> None:
    """One capture for every budget, or a new one for each: how much is there to gain?

    Three minutes for LeNet on two cores. Writes transfer_NETWORK.md and .json.

    Example: uv run python -m pipelines.transfer --network lenet --sparsity 0.8 --sparsity 0.95 --seeds 1
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    with command(as_json) as bars, TemporaryDirectory() as temporary:
        sparsities = checked_sparsities(sparsity or SPARSITIES)
        request = Request(network, images, sparsities, seeds, stages, test_images, method)
        found = study(request, run or Path(temporary), bars)
    parts = [f"uv run python -m pipelines.transfer --network {network} --images {images}"]
    parts += [f"--sparsity {one:g}" for one in sparsities]
    parts += [f"--seeds {seeds} --test-images {test_images}"]
    parts += [f"--stages {stages}"] * (stages is not None) + [f"--method {method}"] * (method != "best")
    about = surroundings()
    text = page(found, about, f"{' '.join(parts)} --write pipelines/results")
    publish(text, {"about": about, **found}, write, f"transfer_{network}", as_json)


if __name__ == "__main__":
    typer.run(main)
