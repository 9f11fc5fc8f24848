"""One-shot pruning of VGG-16 and ResNet-18: every step of ours, and what others choose, at the same sparsities.

    uv run python -m pipelines.one_shot --network vgg16|resnet18 [--sparsity 0.5 --sparsity 0.7 ...]
        [--recipe paper --recipe refit ...] [--run DIRECTORY] [--write DIRECTORY]

One capture of a few thousand images without their labels serves every row: the statistics of every layer, the best
support for every number of channels, and what cutting each group does to the output. Then each recipe at each
sparsity is a network within seconds, and is examined on the test images: accuracy, mean Kullback–Leibler
divergence of its class probabilities from the original's, and agreement with the original's classes. Nothing is
trained. What others choose, and the steps that lead to our recipe, are points apart, not tenths: they are examined
on fewer images. Finished rows are kept in the directory of `--run`: a killed call, typed again, goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from pipelines.networks import Subjects, checked_sparsities, subjects_of
from pipelines.one_shot_bench import Bench, Clock, Examination, prepare
from pipelines.one_shot_cuts import Cut, cut, from_statistics
from pipelines.one_shot_recipes import OUTSIDE, RECIPES, NotComparableError, Recipe
from pipelines.one_shot_rivals import rival
from pipelines.one_shot_tables import page, surroundings
from pipelines.pages import AS_JSON, RUN, THREADS, WRITE, publish
from streamsparse.cli.console import command
from streamsparse.errors import RunMismatchError, UsageError
from streamsparse.events import Notice, OnEvent, ignore, reporting

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

    def __init__(self, request: Request, folder: Path, on_event: OnEvent) -> None:
        self.request, self.folder, self.on_event = request, folder, on_event
        self.subjects: Subjects = subjects_of(request.network)
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
            stages=self.request.stages, clock=clock, on_event=self.on_event,
        )  # fmt: skip
        from_statistics(bench, todo, seed)
        with reporting("networks", len(todo), f"of seed {seed}", self.on_event) as advance:
            for recipe, sparsity in todo:
                self.cells[key(recipe.name, sparsity, seed)] = self._cell(bench, recipe, sparsity, seed)
                self._write()
                advance(1)

    def _cell(self, bench: Bench, recipe: Recipe, sparsity: float, seed: int) -> dict[str, Any]:
        started = perf_counter()
        try:
            made = make(bench, recipe, sparsity, seed)
        except NotComparableError as error:
            self.on_event(Notice(f"{recipe.name} at {sparsity:g}", str(error)))
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
        text = f"{found.pruned_accuracy:.2%}, KL {found.divergence:.4f}, {parameters:,} parameters"
        self.on_event(Notice(f"{recipe.name} at {sparsity:g}", f"{text}, {cut_at - started:.0f} s"))
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


def study(
    request: Request,
    folder: Path,
    recipes: Sequence[Recipe],
    sparsities: Sequence[float],
    seeds: int,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Every figure."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = Study(request, folder, on_event)
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


def chosen_recipes(names: Sequence[str] | None) -> list[Recipe]:
    """By name; all without any.

    Raises:
        UsageError: there is no such row.
    """
    unknown = [name for name in names or () if name not in RECIPES]
    if unknown:
        raise UsageError(
            "There are no such rows.", expected=", ".join(RECIPES), got=", ".join(unknown), where="--recipe"
        )
    return [RECIPES[name] for name in names or RECIPES]


def main(
    network: Annotated[str, typer.Option(help="vgg16, resnet18 or lenet.")] = "vgg16",
    images: Annotated[int, typer.Option(min=10, help="Calibration images.")] = 2000,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Fraction of the parameters that goes; repeatable.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help=f"Row; repeatable: {', '.join(RECIPES)}.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Calibration samples to repeat everything with.")] = 1,
    stages: Annotated[int, typer.Option(min=1, help="Passes of a sequential refit.")] = 4,
    test_images: Annotated[int, typer.Option(min=1, help="For the rows full, by-layer and improved.")] = 10_000,
    fewer_test_images: Annotated[int, typer.Option(min=1, help="For all other rows.")] = 2000,
    threads: THREADS = None,
    run: RUN = None,
    write: WRITE = None,
    as_json: AS_JSON = False,
) -> None:
    """One-shot pruning, nothing trained: every step of ours, and what others choose, at the same sparsities.

    An hour and a half for VGG-16 on one core, four for ResNet-18. Writes one_shot_NETWORK[_N_seeds].md and .json.

    Example: uv run python -m pipelines.one_shot --network lenet --sparsity 0.8 --recipe full --recipe l2
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    fewer = min(fewer_test_images, test_images)
    request = Request(network, images, test_images, fewer, stages)
    with command(as_json) as bars, TemporaryDirectory() as temporary:
        sparsities = checked_sparsities(sparsity or SPARSITIES.get(network, SPARSITIES["vgg16"]))
        found = study(request, run or Path(temporary), chosen_recipes(recipe), sparsities, seeds, bars)
    parts = [
        f"uv run python -m pipelines.one_shot --network {network} --images {images} --test-images {test_images}"
    ]
    parts += [f"--fewer-test-images {fewer} --stages {stages} --seeds {seeds}"]
    parts += [f"--recipe {name}" for name in recipe or ()]
    parts += [f"--sparsity {one:g}" for one in sparsity or ()]
    about = surroundings()
    text = page(found, about, f"{' '.join(parts)} --write pipelines/results")
    name = f"one_shot_{network}" + (f"_{seeds}_seeds" if seeds > 1 else "")
    publish(text, {"about": about, **found}, write, name, as_json)


if __name__ == "__main__":
    typer.run(main)
