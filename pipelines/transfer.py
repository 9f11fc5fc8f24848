"""One capture for every budget, or a new one for each: how much is there to gain?

    uv run python -m pipelines.transfer [--network lenet|vgg16|resnet18] [--images N] [--sparsity 0.5 0.7 ...]
        [--seeds 2] [--stages N] [--test-images 10000] [--run DIRECTORY] [--write DIRECTORY] [--json]

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

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final, get_args

import torch
from torch import nn
from torch.utils.data import Subset

from pipelines.networks import NETWORKS, Subjects
from pipelines.one_shot_tables import surroundings
from pipelines.pages import write_page
from pipelines.transfer_tables import page
from streamsparse.capture import CaptureSettings
from streamsparse.errors import UsageError
from streamsparse.evaluate import compare
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


def checked(sparsities: Sequence[float]) -> tuple[float, ...]:
    """In the order of the steps.

    Raises:
        UsageError: none, or one that is no fraction.
    """
    if not sparsities or not all(0 < value < 1 for value in sparsities):
        raise UsageError("A sparsity is a fraction.", expected="0 < X < 1", got=sparsities, where="--sparsity")
    return tuple(sorted(set(sparsities)))


def study(request: Request, folder: Path) -> dict[str, Any]:
    """Every figure."""
    subjects = NETWORKS[request.network]()
    rows = [row for seed in range(request.seeds) for row in _rows(request, subjects, folder, seed)]
    parameters = sum(parameter.numel() for parameter in subjects.model.parameters())
    return {
        "network": subjects.name,
        "request": asdict(request),
        "original_parameters": parameters,
        "original_accuracy": rows[0]["original_accuracy"],
        "rows": rows,
    }


def _rows(request: Request, subjects: Subjects, folder: Path, seed: int) -> Iterator[dict[str, Any]]:
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
            result = _pruned(request, subjects, model, run, budget, stages, seed)
            seconds = perf_counter() - started
            if way == IN_STEPS:
                before = result.model
            yield {"way": way, "sparsity": sparsity, "seed": seed, "seconds": seconds,
                   **_examined(request, subjects, result)}  # fmt: skip


def _pruned(
    request: Request, subjects: Subjects, model: nn.Module, run: Path, budget: str, stages: int | None, seed: int
) -> Result:
    return prune(
        model, subjects.calibration, budget=budget, run=run, images=request.images, seed=seed, stages=stages,
        capture_settings=CaptureSettings(sink="statistics"), solve_settings=SolveSettings(request.method),
    )  # fmt: skip


def _examined(request: Request, subjects: Subjects, result: Result) -> dict[str, Any]:
    test = Subset(subjects.test, range(request.test_images))
    found = compare(subjects.model, result.model, test).to_json()
    row = {
        **found,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "counts": dict(result.solution.plan.counts),
    }
    print(f"{row['parameters']:,} parameters: KL {row['divergence']:.4f}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Run and show, or write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    request = Request(
        arguments.network, arguments.images, checked(arguments.sparsity), arguments.seeds, arguments.stages,
        arguments.test_images, arguments.method,
    )  # fmt: skip
    with TemporaryDirectory() as temporary:
        found = study(request, arguments.run or Path(temporary))
    command = f"uv run python -m pipelines.transfer --network {request.network} --images {request.images}"
    command += f" --sparsity {' '.join(f'{one:g}' for one in request.sparsities)} --seeds {request.seeds}"
    command += f" --stages {request.stages}" if request.stages else ""
    command += f" --method {request.method}" if request.method != "best" else ""
    about = surroundings()
    text = page(found, about, f"{command} --test-images {request.test_images} --write pipelines/results")
    print(text)
    if arguments.write is not None:
        write_page(arguments.write, f"transfer_{request.network}", text, {"about": about, **found})
    if arguments.json:
        print(json.dumps(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="lenet")
    parser.add_argument("--images", type=int, default=4096, help="of each calibration sample")
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES, metavar="X",
                        help="fractions of the original's parameters that go")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=2, help="calibration samples")
    parser.add_argument("--stages", type=int, help="passes of a refit in order; one per layer if left out")
    parser.add_argument("--method", choices=get_args(Method), default="best", help="of finding channels")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, help="torch's; all cores if left out")
    parser.add_argument("--run", type=Path, help="keep everything here, and go on from what is there")
    parser.add_argument("--write", type=Path, help="write transfer_NETWORK.md and .json into this directory")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
