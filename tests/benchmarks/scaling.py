"""How accumulate scales with workers, and solve with patches.

    python -m tests.benchmarks.scaling [--quick] [--json] [--write] [--folder DIR]

Workers: the same store, a VGG-16 at 32 pixels with random weights, is summed by one and by two single-thread local
worker processes in turns. Both clusters run all the time, and their workers have imported what they need and have
read the store once before the first round counts: the time is that of the stage alone, without the start of a
cluster, and with the store in the page cache. CPU seconds are those of the workers. The bytes between workers are
Dask's own count of what they sent to each other in a round of two; the sums themselves go through the run.

Patches: a front of supports (all methods, held-out errors included) of one 3×3 layer is found from statistics of
10³ to 10⁷ patches, which are summed by the kernels as they come; the sizes take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import torchvision
from distributed import Client, LocalCluster, Worker
from torch import Tensor, nn

from streamsparse.accumulate import AccumulateSettings, accumulate_stream, plan_accumulation
from streamsparse.accumulate.stage import resources_of
from streamsparse.capture import CaptureSettings, capture
from streamsparse.executors.cluster import DaskExecutor
from streamsparse.kernels.folds import FoldSums, empty_folds, finish_folds, update_folds
from streamsparse.network import find_groups
from streamsparse.solve import SolveSettings
from streamsparse.solve.fronts import solve_group
from streamsparse.store import Run
from streamsparse.types import LayerGeometry
from tests.benchmarks.machine import about

RESULTS = Path(__file__).parent / "results"
FOLDS = 5
SIDE = 8  # pixels: 64 patches an image
CHUNK_IMAGES = 500


@dataclass(frozen=True)
class Round:
    """One accumulation: wall seconds of the stage, CPU seconds of its workers, bytes they sent to each other."""

    workers: int
    seconds: float
    cpu_seconds: float
    sent_bytes: int
    tasks: int


@dataclass(frozen=True)
class Solved:
    """One front: wall and CPU seconds."""

    patches: int
    seconds: float
    cpu_seconds: float


class Network(nn.Module):
    """VGG-16's convolutions, as narrow as asked for, and a linear layer."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        features = torchvision.models.vgg16(weights=None, init_weights=False).features
        self.features = nn.Sequential(*(_narrowed(module, divisor) for module in features))
        self.head = nn.Linear(512 // divisor, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images).flatten(1))
        return logits


def _narrowed(module: nn.Module, divisor: int) -> nn.Module:
    if not isinstance(module, nn.Conv2d):
        return module
    inputs = module.in_channels if module.in_channels == 3 else module.in_channels // divisor
    return nn.Conv2d(inputs, module.out_channels // divisor, 3, padding=1)


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Single-thread processes, as `--executor processes` starts them."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def worker_counters(dask_worker: Worker) -> tuple[float, int]:
    """On a worker: CPU seconds of its process, bytes that it sent to others."""
    return time.process_time(), int(dask_worker.transfer_outgoing_bytes_total)


def accumulated(run: Run, client: Client) -> Round:
    """One round; statistics of an earlier one go."""
    run.documents.delete("statistics")
    run.documents.delete("partials")
    executor, settings = DaskExecutor(client), AccumulateSettings(FOLDS)
    reader = run.reader()
    plan = plan_accumulation(run.url, reader, reader.require_complete(), settings, resources_of(executor, settings))
    before = client.run(worker_counters)
    report = accumulate_stream(run, plan, executor=executor)
    after = client.run(worker_counters)
    cpu, sent = (sum(after[worker][i] - before[worker][i] for worker in before) for i in range(2))
    return Round(executor.workers, report.seconds, cpu, int(sent), sum(len(layer.tasks) for layer in plan.layers))


def scaling_with_workers(folder: Path | None, quick: bool) -> Iterator[Round]:
    """One worker and two in turns."""
    divisor, images, batch, rounds = (8, 64, 8, 1) if quick else (1, 768, 32, 3)
    torch.manual_seed(0)
    path = Path(tempfile.mkdtemp(dir=folder))
    try:
        run = Run.at(path / "run")
        data = torch.randn(images, 3, 32, 32)
        capture(Network(divisor).eval(), data, run, settings=CaptureSettings(batch_images=batch))
        with local_cluster(1) as one, local_cluster(2) as two:
            for client in (one, two):
                accumulated(run, client)
            for _ in range(rounds):
                for client in (one, two):
                    yield accumulated(run, client)
    finally:
        shutil.rmtree(path)


def scaling_with_patches(quick: bool) -> Iterator[Solved]:
    """The sizes take turns; the first turn is not counted."""
    channels, most, turns = (24, 10**5, 2) if quick else (64, 10**7, 5)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(channels * SIDE**2, 10),
    ).eval()  # fmt: skip
    graph = find_groups(model, torch.zeros(1, 3, SIDE, SIDE))
    layer, sizes = model[2], [10**power for power in range(3, len(str(most)))]
    assert isinstance(layer, nn.Conv2d)
    mixing = torch.randn(channels, channels) / channels**0.5
    statistics = {size: summed(layer, graph.layers["2"], mixing, size) for size in sizes}
    for turn in range(turns + 1):
        for size in sizes:
            wall, cpu = time.perf_counter(), time.process_time()
            solve_group(graph.group("0"), graph.layers, {"2": statistics[size]}, SolveSettings())
            if turn:
                yield Solved(size, time.perf_counter() - wall, time.process_time() - cpu)


@torch.no_grad()
def summed(layer: nn.Conv2d, geometry: LayerGeometry, mixing: Tensor, patches: int) -> FoldSums:
    """Statistics of so many patches of correlated channels, and a few more to fill the last image."""
    generator = torch.Generator().manual_seed(0)
    sums, images = empty_folds(geometry, FOLDS), -(-patches // SIDE**2)
    for first in range(0, images, CHUNK_IMAGES):
        shape = (min(CHUNK_IMAGES, images - first), *geometry.input_shape)
        values = torch.randn(shape, generator=generator)
        inputs = torch.einsum("oc,nchw->nohw", mixing, values).relu()
        update_folds(sums, inputs, layer(inputs), geometry, first, "float32")
    return finish_folds(sums, geometry)


def summary(rounds: list[Round], solved: list[Solved]) -> dict[str, object]:
    """The figures to compare: medians of wall seconds."""
    one, two = ([found for found in rounds if found.workers == workers] for workers in (1, 2))
    sizes = sorted({found.patches for found in solved})
    return {
        "speedup_2_workers": median(found.seconds for found in one) / median(found.seconds for found in two),
        "solve_seconds_by_patches": {
            str(size): median(found.seconds for found in solved if found.patches == size) for size in sizes
        },
        "bytes_between_workers": max(found.sent_bytes for found in two),
    }


def table(rounds: list[Round], solved: list[Solved]) -> list[str]:
    """Both, to read."""
    lines = ["| workers | seconds (each round) | CPU seconds of the workers | tasks | bytes between workers |"]
    lines += ["|---:|---|---|---:|---:|"]
    for workers in (1, 2):
        found = [item for item in rounds if item.workers == workers]
        times = (" ".join(f"{value:.1f}" for value in values) for values in zip(*map(_times, found), strict=True))
        lines.append(f"| {workers} | {' | '.join(times)} | {found[0].tasks} | {found[-1].sent_bytes} |")
    lines += ["", "| patches | solve, seconds (median) | CPU seconds (median) |", "|---:|---:|---:|"]
    for size in sorted({item.patches for item in solved}):
        times = (median(values) for values in zip(*(_times(s) for s in solved if s.patches == size), strict=True))
        lines.append(f"| {size:,} | " + " | ".join(f"{value:.2f}" for value in times) + " |")
    return lines


def _times(found: Round | Solved) -> tuple[float, float]:
    return found.seconds, found.cpu_seconds


def write(rounds: list[Round], solved: list[Solved]) -> None:
    """Commit the figures: a table to read and the same as JSON."""
    facts, figures = about(), summary(rounds, solved)
    listed = {"about": facts, "summary": figures, "rounds": [asdict(item) for item in rounds]}
    listed["solved"] = [asdict(item) for item in solved]
    (RESULTS / "scaling.json").write_text(json.dumps(listed, indent=1) + "\n")
    lines = ["# Accumulate with two workers, solve with more patches", ""]
    lines += [*(f"{key}: {value}  " for key, value in facts.items()), ""]
    lines += [f"two workers against one: {figures['speedup_2_workers']:.2f} times as fast", ""]
    (RESULTS / "scaling.md").write_text("\n".join([*lines, *table(rounds, solved)]) + "\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a narrow network and fewer patches, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--folder", type=Path, help="where 2 GiB are free; the system's temporary folder if not")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds: list[Round] = []
    solved: list[Solved] = []
    for round_ in scaling_with_workers(arguments.folder, arguments.quick):
        rounds.append(round_)
        print(round_, file=sys.stderr, flush=True)
    for found in scaling_with_patches(arguments.quick):
        solved.append(found)
        print(found, file=sys.stderr, flush=True)
    print("\n".join(table(rounds, solved)), file=sys.stderr)
    if arguments.write:
        write(rounds, solved)
    if arguments.json:
        print(json.dumps(summary(rounds, solved)))


if __name__ == "__main__":
    main()
