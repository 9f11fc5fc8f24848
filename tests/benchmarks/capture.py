"""Capture of VGG-16 at 32 pixels against the plain forward pass over the same images, and against the disk.

    python -m tests.benchmarks.capture [--quick] [--json] [--write]

One and two threads. The clock of a capture is that of its own progress events: the pass over the images, through
`streamsparse.capture`, and the last commit apart, which does not grow with the images (bytes listed); what comes
before, finding the channel groups once per run, is listed too. Statistics are those of all thirteen consumers,
five folds, float32 products. "statistics_over_forward" is the pass, "with_commit_over_forward" the pass and the
last commit over the number of images listed. The dump is float16, zstd:1; its bytes per second are those that
reach the disk, and the disk's own bandwidth is that of plain 8 MiB files of random bytes, as many, in the same
directory; neither waits for the disk's cache to be flushed. Forward passes and captures take turns; figures are
medians of the repeats. The trained VGG-16 beside the repository is used where it is there, else random weights of
the same architecture (`torchvision.models.vgg16_bn`, classifier 512 → 10).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import streamsparse as ss
from streamsparse.events import Event, Finished
from tests.benchmarks.machine import about

RESULTS = Path(__file__).parent / "results"
TRAINED = Path(__file__).resolve().parents[3] / "shared" / "models" / "vgg16_fashion_mnist.safetensors"
IMAGES, QUICK_IMAGES = 2048, 128
DUMP_IMAGES = 512
BATCH_IMAGES = 128
FILE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Result:
    """Seconds (medians) on some threads; ratios are over the forward pass of as many images.

    Attributes:
        images: of the statistics; dump_images: of the dump.
        forward_seconds: per image.
        statistics_seconds: of the pass over `images`; commit_seconds: of the last commit.
        dump_seconds: of the whole pass, to the last commit.
        graph_seconds: before the pass.
        statistics_bytes, dump_bytes: written.
        disk_bytes_per_second: of plain files.
    """

    threads: int
    images: int
    dump_images: int
    forward_seconds: float
    statistics_seconds: float
    commit_seconds: float
    dump_seconds: float
    graph_seconds: float
    statistics_bytes: int
    dump_bytes: int
    disk_bytes_per_second: float

    @property
    def statistics_over_forward(self) -> float:
        """Of the pass."""
        return self.statistics_seconds / (self.images * self.forward_seconds)

    @property
    def with_commit_over_forward(self) -> float:
        """Of the pass and the last commit."""
        return (self.statistics_seconds + self.commit_seconds) / (self.images * self.forward_seconds)

    @property
    def dump_over_forward(self) -> float:
        """Of the whole pass over `dump_images`."""
        return self.dump_seconds / (self.dump_images * self.forward_seconds)

    @property
    def dump_over_disk_bandwidth(self) -> float:
        """Bytes that the dump stores per second, over those of plain files."""
        return self.dump_bytes / self.dump_seconds / self.disk_bytes_per_second

    def ratios(self) -> dict[str, float]:
        """The figures to compare."""
        names = (
            "statistics_over_forward",
            "with_commit_over_forward",
            "dump_over_forward",
            "dump_over_disk_bandwidth",
        )
        return {name: getattr(self, name) for name in names}


def network() -> nn.Module:
    """VGG-16 with batch normalisation for 32 pixels, in evaluation mode."""
    import torchvision

    torch.manual_seed(0)
    features = torchvision.models.vgg16_bn(weights=None, init_weights=False).features
    model = nn.Sequential()
    model.features, model.flatten, model.classifier = features, nn.Flatten(), nn.Linear(512, 10)
    if TRAINED.exists():
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(TRAINED).items()}, strict=False)
    return model.eval()


def forward(model: nn.Module, images: Tensor) -> float:
    """Seconds of the plain forward pass, in batches as the capture's."""
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in torch.split(images, BATCH_IMAGES):
            model(batch)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Captured:
    """Seconds of the pass, of the last commit and of what came before; bytes stored."""

    seconds: float
    commit_seconds: float
    before_seconds: float
    stored_bytes: int


def capture(model: nn.Module, images: Tensor, folder: Path, sink: str) -> Captured:
    """One capture into a directory that is removed afterwards."""
    seconds: dict[str, float] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Finished):
            seconds[event.stage] = event.seconds

    settings = ss.CaptureSettings(sink=sink, products="float32", batch_images=BATCH_IMAGES)
    started = time.perf_counter()
    report = ss.capture(model, images, folder, settings=settings, on_event=listen)
    whole = time.perf_counter() - started
    shutil.rmtree(folder)
    commit = seconds.get("capture: commit", 0.0)
    return Captured(seconds["capture"], commit, whole - seconds["capture"] - commit, report.stored_bytes)


def disk(folder: Path, total_bytes: int) -> float:
    """Bytes per second of plain files."""
    piece = os.urandom(FILE_BYTES)
    folder.mkdir()
    files = max(1, total_bytes // FILE_BYTES)
    started = time.perf_counter()
    for number in range(files):
        (folder / str(number)).write_bytes(piece)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return files * FILE_BYTES / seconds


def measure(folder: Path, threads: int, images: int, dump_images: int, repeats: int) -> Result:
    """All contestants in turns, so that they share the machine's ups and downs."""
    torch.set_num_threads(threads)
    model, sample = network(), torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    forward(model, sample[: 2 * BATCH_IMAGES])  # libraries compile their kernels at the first call
    turns: list[tuple[float, ...]] = []
    for _ in range(repeats):
        first = forward(model, sample)
        summed = capture(model, sample, folder / "statistics", "statistics")
        dumped = capture(model, sample[:dump_images], folder / "dump", "activations")
        bandwidth = disk(folder / "plain", dumped.stored_bytes)
        per_image = (first + forward(model, sample)) / 2 / images
        turns.append(
            (
                per_image, summed.seconds, summed.commit_seconds, dumped.seconds, summed.before_seconds,
                summed.stored_bytes, dumped.stored_bytes, bandwidth,
            )
        )  # fmt: skip
        print(threads, turns[-1], file=sys.stderr, flush=True)
    seconds, passed, commit, dump, before, stored, dump_bytes, rate = (median(c) for c in zip(*turns, strict=True))
    return Result(
        threads, images, dump_images, seconds, passed, commit, dump, before, int(stored), int(dump_bytes), rate
    )


def write(results: list[Result]) -> None:
    """Commit the figures: a table to read and the same as JSON."""
    facts = about()
    weights = {"weights": "trained" if TRAINED.exists() else "random"}
    RESULTS.mkdir(exist_ok=True)
    listed = {"about": facts | weights, "results": [asdict(r) | r.ratios() for r in results]}
    (RESULTS / "capture.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    lines = ["# Capture against the forward pass and the disk", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    lines += [*(f"{key}: {value}  " for key, value in (facts | weights).items()), ""]
    columns: dict[str, Callable[[Result], str]] = {
        "threads": lambda r: str(r.threads),
        "images": lambda r: f"{r.images:,}",
        "forward, ms per image": lambda r: f"{1e3 * r.forward_seconds:.2f}",
        "statistics / forward": lambda r: f"{r.statistics_over_forward:.2f}",
        "with the last commit": lambda r: f"{r.with_commit_over_forward:.2f}",
        "last commit, s": lambda r: f"{r.commit_seconds:.1f}",
        "statistics, GB written": lambda r: f"{r.statistics_bytes / 1e9:.2f}",
        "dumped images": lambda r: f"{r.dump_images:,}",
        "dump / forward": lambda r: f"{r.dump_over_forward:.2f}",
        "dump, MB per image": lambda r: f"{r.dump_bytes / r.dump_images / 1e6:.2f}",
        "dump / disk bandwidth": lambda r: f"{r.dump_over_disk_bandwidth:.3f}",
        "disk, MB/s": lambda r: f"{r.disk_bytes_per_second / 1e6:.0f}",
        "before the pass, s": lambda r: f"{r.graph_seconds:.1f}",
    }
    lines += ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    lines += ["| " + " | ".join(text(result) for text in columns.values()) + " |" for result in results]
    (RESULTS / "capture.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, one thread, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts of the full run")
    parser.add_argument("--images", type=int, default=IMAGES, help="of the full run's statistics")
    parser.add_argument("--repeats", type=int, default=3, help="of the full run")
    parser.add_argument("--folder", help="where to write; a temporary directory if left out")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for threads in [1] if arguments.quick else arguments.threads:
            images = QUICK_IMAGES if arguments.quick else arguments.images
            repeats = 1 if arguments.quick else arguments.repeats
            results.append(measure(Path(folder), threads, images, min(images, DUMP_IMAGES), repeats))
            print(results[-1], results[-1].ratios(), file=sys.stderr)
    if arguments.write:
        write(results)
    if arguments.json:
        print(json.dumps(results[0].ratios()))


if __name__ == "__main__":
    main()
