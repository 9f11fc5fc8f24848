"""One-shot pruning of VGG-16 and ResNet-18: every step of ours, and what others choose, at the same sparsities.

    uv run python -m pipelines.one_shot --network vgg16|resnet18 [--images 2000] [--sparsity 0.5 0.7 ...]
        [--recipes paper refit ...] [--seeds 1] [--test-images 10000] [--fewer-test-images 2000]
        [--run DIRECTORY] [--write DIRECTORY] [--json]

One capture of a few thousand images without their labels serves every row: the statistics of every layer, the best
support for every number of channels, and what cutting each group does to the output. Then each recipe at each
sparsity is a network within seconds, and is examined on the test images: accuracy, mean Kullback–Leibler
divergence of its class probabilities from the original's, and agreement with the original's classes. Nothing is
trained. What others choose, and the steps that lead to our recipe, are points apart, not tenths: they are examined
on fewer images. Finished rows are kept in the directory of `--run`: a killed call, typed again, goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from pipelines.networks import NETWORKS, Subjects
from pipelines.one_shot_bench import Bench, Clock, Examination, prepare
from pipelines.one_shot_cuts import Cut, cut, from_statistics
from pipelines.one_shot_recipes import OUTSIDE, RECIPES, NotComparableError, Recipe
from pipelines.one_shot_rivals import rival
from pipelines.one_shot_tables import page, surroundings
from pipelines.pages import write_page
from streamsparse.errors import RunMismatchError
from streamsparse.events import Event, Notice, Reused

SPARSITIES = {"vgg16": (0.5, 0.7, 0.8, 0.887, 0.93, 0.96), "resnet18": (0.5, 0.7, 0.736, 0.8, 0.85, 0.887, 0.93)}


@dataclass(frozen=True)
class Request:
    """What is compared; rows of another request are not mixed with these.

    Attributes:
        network: name in `pipelines.networks.NETWORKS`.
        images: calibration images.
        test_images: the first so many, for the rows `full`, `by-layer` and `improved`.
        fewer_test_images: for the others.
        stages: passes of a sequential refit.
    """

    network: str
    images: int
    test_images: int
    fewer_test_images: int
    stages: int


class Study:
    """The rows of one request, kept in a directory as soon as they are found (mutable)."""

    def __init__(self, request: Request, folder: Path) -> None:
        self.request, self.folder = request, folder
        self.subjects: Subjects = NETWORKS[request.network]()
        found = self._read()
        self.cells: dict[str, dict[str, Any]] = found["cells"]
        self.clocks: dict[str, dict[str, float]] = found["seconds"]
        self._examination: Examination | None = None

    def _read(self) -> dict[str, Any]:
        path = self.folder / "cells.json"
        if not path.exists():
            return {"cells": {}, "seconds": {}}
        found: dict[str, Any] = json.loads(path.read_text())
        if found["request"] != asdict(self.request):
            raise RunMismatchError(
                "This directory holds another comparison.", expected=found["request"], got=asdict(self.request),
                where="--run", remedy="choose another directory, or repeat the request",
            )  # fmt: skip
        return found

    def _write(self) -> None:
        document = {"request": asdict(self.request), "cells": self.cells, "seconds": self.clocks}
        partial = self.folder / "cells.json.partial"
        partial.write_text(json.dumps(document, indent=1))
        partial.replace(self.folder / "cells.json")

    @property
    def examination(self) -> Examination:
        """The test images with the original's outputs."""
        if self._examination is None:
            self._examination = Examination.of(self.subjects, self.request.test_images)
        return self._examination

    def fill(self, recipes: Sequence[Recipe], sparsities: Sequence[float], seed: int) -> None:
        """All rows of one seed that are not there yet."""
        wanted = [(recipe, sparsity) for sparsity in sparsities for recipe in recipes]
        todo = [(r, s) for r, s in wanted if key(r.name, s, seed) not in self.cells]
        if not todo:
            return
        clock = Clock(self.clocks.setdefault(str(seed), {}), self._write)
        bench = prepare(
            self.subjects, self.folder / f"seed-{seed}", images=self.request.images, seed=seed,
            stages=self.request.stages, clock=clock, on_event=_say,
        )  # fmt: skip
        from_statistics(bench, todo, seed)
        for recipe, sparsity in todo:
            self.cells[key(recipe.name, sparsity, seed)] = self._cell(bench, recipe, sparsity, seed)
            self._write()

    def _cell(self, bench: Bench, recipe: Recipe, sparsity: float, seed: int) -> dict[str, Any]:
        started = perf_counter()
        try:
            made = make(bench, recipe, sparsity, seed)
        except NotComparableError as error:
            _print(f"{recipe.name} at {sparsity}: {error}")
            return {"why_not": str(error)}
        cut_at = perf_counter()
        images = self.request.test_images if recipe.on_all_images else self.request.fewer_test_images
        found = self.examination.of_pruned(made.model, images)
        parameters = sum(parameter.numel() for parameter in made.model.parameters())
        macs = bench.captured.costs.macs(made.counts) if made.counts else None  # another tool cuts other groups
        cell = {
            **found.to_json(), "parameters": parameters, "macs": macs, "counts": made.counts,
            "predicted_divergence": sum(float(bench.losses[name][k]) for name, k in made.counts.items()),
            "cut_seconds": cut_at - started, "test_seconds": perf_counter() - cut_at,
        }  # fmt: skip
        _print(
            f"{sparsity} {recipe.name}: {found.pruned_accuracy:.2%}, KL {found.divergence:.4f}, "
            f"{parameters:,} parameters, {cut_at - started:.0f} s"
        )
        return cell


def make(bench: Bench, recipe: Recipe, sparsity: float, seed: int) -> Cut:
    """The recipe's network."""
    if not recipe.channels.startswith(OUTSIDE):
        return cut(bench, recipe, sparsity, seed)
    _, by, reach = recipe.channels.split()
    return Cut(rival(bench, by, reach, sparsity), {})


def key(recipe: str, sparsity: float, seed: int) -> str:
    """Of a cell."""
    return f"{recipe} {sparsity} {seed}"


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say(event: Event) -> None:
    if isinstance(event, Notice):
        _print(event.message)
    if isinstance(event, Reused):
        _print(f"{event.stage}: {event.what} used again")


def study(
    request: Request, folder: Path, recipes: Sequence[Recipe], sparsities: Sequence[float], seeds: int
) -> dict[str, Any]:
    """Every figure."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = Study(request, folder)
    for seed in range(seeds):
        rows.fill(recipes, sparsities, seed)
    return {
        "network": rows.subjects.name,
        "request": asdict(request),
        "sparsities": list(sparsities),
        "seeds": seeds,
        "recipes": {recipe.name: recipe.text for recipe in recipes},
        "original_parameters": sum(parameter.numel() for parameter in rows.subjects.model.parameters()),
        "seconds": rows.clocks,
        "cells": {
            key(r.name, s, seed): rows.cells[key(r.name, s, seed)]
            for r in recipes for s in sparsities for seed in range(seeds)
        },
    }  # fmt: skip


def main() -> None:
    """Run and show, or write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    fewer = min(arguments.fewer_test_images, arguments.test_images)
    request = Request(arguments.network, arguments.images, arguments.test_images, fewer, arguments.stages)
    recipes = [RECIPES[name] for name in arguments.recipes]
    sparsities = arguments.sparsity or SPARSITIES.get(arguments.network, SPARSITIES["vgg16"])
    with TemporaryDirectory() as temporary:
        found = study(request, arguments.run or Path(temporary), recipes, sparsities, arguments.seeds)
    command = f"uv run python -m pipelines.one_shot --network {request.network} --images {request.images}"
    command += f" --test-images {request.test_images} --fewer-test-images {fewer}"
    command += f" --stages {request.stages} --seeds {arguments.seeds}"
    if arguments.recipes != list(RECIPES):
        command += f" --recipes {' '.join(arguments.recipes)}"
    if arguments.sparsity:
        command += f" --sparsity {' '.join(f'{one:g}' for one in arguments.sparsity)}"
    about = surroundings()
    text = page(found, about, f"{command} --write pipelines/results")
    print(text)
    if arguments.write is not None:
        name = f"one_shot_{request.network}" + (f"_{arguments.seeds}_seeds" if arguments.seeds > 1 else "")
        write_page(arguments.write, name, text, {"about": about, **found})
    if arguments.json:
        print(json.dumps(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="vgg16")
    parser.add_argument("--images", type=int, default=2000, help="calibration images")
    parser.add_argument("--sparsity", type=float, nargs="+", help="fractions of the parameters that go")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="RECIPE",
                        help=f"rows: {', '.join(RECIPES)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="calibration samples to repeat everything with")
    parser.add_argument("--stages", type=int, default=4, help="passes of a sequential refit")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument(
        "--fewer-test-images", type=int, default=2000, help="for all rows but `full`, `by-layer` and `improved`"
    )
    parser.add_argument("--threads", type=int, help="torch's; all cores if left out")
    parser.add_argument("--run", type=Path, help="keep everything here, and go on from what is there")
    parser.add_argument(
        "--write", type=Path, help="write one_shot_NETWORK[_N_seeds].md and .json into this directory"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
