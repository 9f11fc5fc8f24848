"""The solver: whole paths of layers, W-steps that acceleration saves, a thousand settings of the hyperparameters.

    python -m tests.benchmarks.solver [--quick] [--json] [--write] [--run DIR] [--threads N]
                                      [--parts paths alternations searches]

On statistics of the trained VGG-16 from 2,000 images (5 folds, products in float32), where `shared/` beside the
repository has it; otherwise on correlated random images in a 512×9 layer, and the output says so. A path is all
that `streamsparse solve` computes for a channel group: every count's support by method "best", and held-out errors.
Peak memory is what the process takes beyond what it held when the statistics were in memory, in units of the
layer's Gram in float64. Plain alternation runs from uniform weights until it gains less than 1e-7, at most the
stated number of steps; "accelerated" counts W-steps until its loss is as low. `counting_inversions` adds one step
for every Newton step's inversion. The quick run takes LeNet and a narrow random layer in their place.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from streamsparse.kernels.entropic import alternate
from streamsparse.kernels.regression import Problem
from streamsparse.kernels.settings import grid_settings
from streamsparse.solve.fronts import SolveSettings, solve_group
from streamsparse.solve.hyperparameters import search_group
from streamsparse.solve.problems import group_problem
from streamsparse.solve.threads import blas_threads, one_blas_thread
from streamsparse.store import Run
from tests.benchmarks import solver_subjects
from tests.benchmarks.solver_results import PARTS, AlternationResult, Figures, PathResult, SearchResult, write
from tests.benchmarks.solver_subjects import Subject, subject_of, subjects_of, synthetic, trained

IMAGES, QUICK_IMAGES = 2000, 400
EPS_L2 = (1e-6, 1e-5, 1e-4)
EPS_H = 1e-5
PLAIN_STEPS = {576: 400, 1152: 200, 2304: 120, 4608: 80}  # at most, by columns
ACCELERATED = {"features.3": EPS_L2, "features.7": EPS_L2, "features.17": EPS_L2, "features.24": (1e-4,)}
SEARCHED = "features.17"


def path(subject: Subject) -> PathResult:
    """Solve one group as the stage does."""
    gram_bytes = 8 * subject.columns**2
    before = resident_bytes("VmRSS")
    forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    with one_blas_thread():
        front = solve_group(subject.group, subject.geometries, subject.statistics, SolveSettings()).front
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    methods = {method: front.methods.count(method) for method in sorted(set(front.methods))}
    peak = (resident_bytes("VmHWM") - before) / gram_bytes
    return PathResult(subject.group.name, subject.name, seconds, cpu_seconds, peak, methods)


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def forget_peak() -> None:
    """Start VmHWM afresh from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


class Reached(Exception):  # noqa: N818  not a failure
    """The loss is as low as was asked; the argument is the iteration."""


def alternations(subject: Subject, eps_l2_values: tuple[float, ...]) -> Iterator[AlternationResult]:
    """Plain and accelerated, from uniform weights, to the plain one's last loss."""
    problem = group_problem(subject.group, subject.geometries, subject.statistics)
    most = next(steps for columns, steps in PLAIN_STEPS.items() if subject.columns <= columns)
    for eps_l2 in eps_l2_values:
        started = time.process_time()
        plain = alternate(problem, eps_l2=eps_l2, eps_h=EPS_H, max_iterations=most)
        plain_seconds, target = time.process_time() - started, plain.losses[-1]
        started = time.process_time()
        needed = iterations_to(problem, eps_l2, target)
        seconds = time.process_time() - started
        short = alternate(problem, eps_l2=eps_l2, eps_h=EPS_H, max_iterations=needed, tolerance=0, accelerate=True)
        inversions = sum(number > 4 and number % 2 for number in range(1, needed + 1))
        yield AlternationResult(
            subject.group.name, subject.name, eps_l2, EPS_H, plain.w_steps, plain.converged, plain_seconds,
            short.w_steps, inversions, seconds, target,
        )  # fmt: skip


def iterations_to(problem: Problem, eps_l2: float, target: float) -> int:
    """Accelerated iterations until the loss is at most `target`."""

    def compare(number: int, value: float, w: np.ndarray) -> None:
        if value <= target:
            raise Reached(number)

    try:
        alternate(problem, eps_l2=eps_l2, eps_h=EPS_H, tolerance=1e-12, accelerate=True, on_iteration=compare)
    except Reached as reached:
        return int(reached.args[0])
    raise RuntimeError(f"eps_l2 {eps_l2}: the accelerated alternation ended above the plain one's loss")


def searched(subject: Subject, number: int) -> SearchResult:
    """A grid of settings, each with its support's held-out error."""
    wall, cpu = time.perf_counter(), time.process_time()
    with blas_threads(subject.columns):
        found = search_group(subject.group, subject.geometries, subject.statistics, grid_settings(number))
    return SearchResult(
        subject.group.name, subject.name, len(found.trials), found.supports, found.w_steps,
        time.perf_counter() - wall, time.process_time() - cpu,
    )  # fmt: skip


def measure(arguments: argparse.Namespace, folder: Path) -> Figures:
    """Everything that was asked for."""
    if arguments.quick:
        figures = Figures("quick: LeNet and 48x9 random", [], [], [])
        lenet = trained("lenet", QUICK_IMAGES, folder / "lenet")
        narrow = synthetic(48, 32, 100)
        figures.tell(path(narrow))
        for result in alternations(narrow, EPS_L2):
            figures.tell(result)
        figures.tell(searched(subject_of(lenet, solver_subjects.groups_of(lenet)[1]), 1000))
    elif solver_subjects.vgg16_is_there():
        figures = Figures("VGG-16 on Fashion-MNIST", [], [], [])
        vgg16 = trained("vgg16", IMAGES, arguments.run or folder / "vgg16")
        trained_figures(figures, arguments.parts, vgg16, trained("lenet", IMAGES, folder / "lenet"))
    else:
        print("no shared/models beside the repository: correlated random images in its place", file=sys.stderr)
        figures = Figures("512x9 random", [], [], [])
        wide = synthetic(512, 512, 400)
        figures.tell(path(wide))
        for result in alternations(wide, EPS_L2[-1:]):
            figures.tell(result)
        figures.tell(searched(synthetic(256, 256, 400), 1000))
    return figures


def trained_figures(figures: Figures, parts: list[str], vgg16: Run, lenet: Run) -> None:
    """VGG-16's groups, and searches on it and on LeNet."""
    if "paths" in parts:
        for subject in subjects_of(vgg16):
            figures.tell(path(subject))
    if "alternations" in parts:
        for name, values in ACCELERATED.items():
            for result in alternations(subject_of(vgg16, name), values):
                figures.tell(result)
    if "searches" in parts:
        figures.tell(searched(subject_of(vgg16, SEARCHED), 1000))
        for name in solver_subjects.groups_of(lenet)[1:3]:
            figures.tell(searched(subject_of(lenet, name), 1000))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="LeNet and a narrow layer, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--run", type=Path, help="keep VGG-16's statistics here, 8 GB, and use them the next time")
    parser.add_argument("--threads", type=int, default=2, help="of BLAS")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the full run on VGG-16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(arguments.threads, user_api="blas"):
        figures = measure(arguments, Path(folder))
    if arguments.write:
        write(figures, arguments.threads)
    if arguments.json:
        print(json.dumps({"subject": figures.subject, **figures.summary()}))


if __name__ == "__main__":
    main()
