"""Accumulating much more than the memory limit: measured peaks against the projection and the limit.

    python -m tests.benchmarks.memory [--quick] [--json] [--write] [--folder DIR]

Two things are larger than a worker. First the activations: a store of at least ten times the limit, by one process
and by two local worker processes, each of which has the limit for itself. Then the Gram: a 3×3 layer with 2,048
input channels, 18,432² numbers in every fold, which is summed in blocks; pairs of channels are checked against
float64 patches. Everything goes through the command line; the projection is that of `--dry-run`. The quick run
has a small store and a limit just above what the libraries take, and cuts a narrower layer into blocks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor, nn
from torch.utils.data import Dataset

from streamsparse.capture import CaptureSettings, capture
from streamsparse.kernels.patches import patches, responses
from streamsparse.store import Run, layout
from tests.benchmarks.machine import about
from tests.benchmarks.watching import watch

RESULTS = Path(__file__).parent / "results"
GIB = 2**30


@dataclass(frozen=True)
class Result:
    """One accumulation. `peak_rss_bytes` is that of the process that took most of those that sum."""

    case: str
    store_bytes: int
    limit_bytes: int
    projected_bytes: int
    peak_rss_bytes: int
    blocks: int
    tasks: int
    images: int
    seconds: float
    error: float

    @property
    def within(self) -> bool:
        """What is to be shown."""
        return self.peak_rss_bytes <= self.projected_bytes <= self.limit_bytes


class Images(Dataset[Tensor]):
    """Random images, made when they are asked for; the same every time."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Tensor:
        if not 0 <= position < self.count:
            raise IndexError(position)
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(position))


class ChannelsNet(nn.Module):
    """Some 3×3 convolutions of equal width, and a linear layer on the mean."""

    def __init__(self, channels: int, layers: int, stem_kernel: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, stem_kernel, padding=stem_kernel // 2)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.stem(images))
        for convolution in self.convolutions:
            features = torch.relu(convolution(features))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def captured(path: Path, model: nn.Module, images: Images, batch: int) -> Run:
    """A run with the activations of the model, float16 as they come."""
    torch.manual_seed(0)
    run = Run.at(path)
    capture(model.eval(), images, run, settings=CaptureSettings(codec="none", batch_images=batch))
    return run


def accumulated(case: str, run: Run, limit_bytes: int, *options: str) -> Result:
    """Accumulate under a limit on memory, twice: projected, and done. Statistics of an earlier call go."""
    run.documents.delete("statistics")
    arguments = ("accumulate", run.url, "--memory-limit", f"{limit_bytes}B", "--threads", "1", *options)
    plan = watch(*arguments, "--dry-run").output
    done = watch(*arguments)
    layers = plan["layers"]
    return Result(
        case,
        run.documents.size_bytes("activations"),
        limit_bytes,
        plan["worker_bytes"],
        done.largest_peak_bytes,
        max(layer["blocks"] for layer in layers),
        sum(layer["tasks"] for layer in layers),
        plan["images"],
        done.seconds,
        largest_error(run),
    )


def largest_error(run: Run, channels: int = 3) -> float:
    """Of Gram and cross, summed over folds, at some channels and pairs of them, against float64 patches."""
    reader, worst = run.reader(), 0.0
    for name, layer in reader.layers.items():
        geometry = layer.geometry
        chosen = np.sort(np.random.default_rng(0).choice(geometry.in_channels, channels, replace=False))
        shape = (channels, *geometry.input_shape[1:])
        narrow = replace(geometry, in_channels=channels, input_shape=shape)
        gram = torch.zeros(narrow.columns, narrow.columns, dtype=torch.float64)
        cross = torch.zeros(narrow.columns, geometry.out_channels, dtype=torch.float64)
        for batch in reader.require_complete():
            inputs = torch.from_numpy(reader.read(batch, name, 0, "input")[:, chosen])
            outputs = torch.from_numpy(reader.read(batch, name, 0, "output"))
            for values, results in zip(torch.split(inputs, 16), torch.split(outputs, 16), strict=True):
                rows = patches(values.double(), narrow)[0]
                gram.addmm_(rows.T, rows)
                cross.addmm_(rows.T, responses(results.double(), geometry)[0])
        columns = (np.arange(geometry.taps) + geometry.taps * chosen[:, None]).ravel()
        stored = stored_sums(run, name, columns)
        pairs = zip(stored, (gram.numpy(), cross.numpy()), strict=True)
        worst = max(worst, *(float(np.abs(ours - exact).max() / np.abs(exact).max()) for ours, exact in pairs))
    return worst


def stored_sums(run: Run, layer: str, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some columns of a layer's Gram and cross, summed over the folds, without reading the whole of them."""
    key = layout.statistics_key(layout.ORIGINAL_STREAM, layer)
    generation = (run.records.description(key) or {})["generation"]
    gram, cross = (zarr.open_array(run.store, path=f"{key}/{generation}/{name}") for name in ("gram", "cross"))
    found = np.asarray(gram.oindex[:, 0, columns, columns]), np.asarray(cross.oindex[:, 0, columns, slice(None)])
    return found[0].sum(0), found[1].sum(0)


@contextmanager
def temporary(folder: Path | None) -> Iterator[Path]:
    """A directory for the time of the block: stores are large."""
    path = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def activations_larger_than_memory(folder: Path | None, quick: bool) -> Iterator[Result]:
    """One process, then two; the same store. A process itself needs 0.4 GiB, which the quick limit leaves out."""
    channels, size, images, batch = (8, 64, 256, 128) if quick else (32, 64, 7168, 128)
    with temporary(folder) as path:
        run = captured(path / "run", ChannelsNet(channels, 3), Images(images, size), batch)
        limit = quick_limit(run, 128 * 2**20) if quick else GIB
        for case, options in (
            ("activations, 1 process", ("--executor", "serial")),
            ("activations, 2 workers", ("--executor", "processes", "--workers", "2")),
        ):
            yield accumulated(case, run, limit, *options)


def quick_limit(run: Run, task_bytes: int) -> int:
    """Such that a task may hold so many bytes; Dask's workers plan with nine tenths of their limit."""
    plan = watch("accumulate", run.url, "--executor", "processes", "--workers", "1", "--dry-run").output
    return int((plan["process_bytes"] + task_bytes) / 0.87)


def gram_larger_than_memory(folder: Path | None, quick: bool) -> Iterator[Result]:
    """A wide 3×3 layer. Two folds, for the statistics of each take 3 GB on the disk."""
    channels, images = (320, 32) if quick else (2048, 48)
    with temporary(folder) as path:
        run = captured(path / "run", ChannelsNet(channels, 1, stem_kernel=1), Images(images, 7), 16)
        case = f"Gram of {channels:,} channels, 3×3"
        options = ("--executor", "serial", "--folds", "2")
        yield accumulated(case, run, quick_limit(run, 64 * 2**20) if quick else GIB, *options)


def headline(results: list[Result]) -> dict[str, int]:
    """Of the large store: the case that came closest to its projection."""
    closest = max(results[:2], key=lambda result: result.peak_rss_bytes / result.projected_bytes)
    names = ("store_bytes", "limit_bytes", "projected_bytes", "peak_rss_bytes")
    return {name: getattr(closest, name) for name in names}


def line(result: Result) -> str:
    """One row of the table."""
    names = ("store_bytes", "limit_bytes", "projected_bytes", "peak_rss_bytes")
    sizes = " | ".join(f"{getattr(result, name) / 2**20:,.0f}" for name in names)
    counts = f"{result.images:,} | {result.blocks} | {result.tasks} | {result.seconds:.0f} | {result.error:.0e}"
    return f"| {result.case} | {sizes} | {'yes' if result.within else 'NO'} | {counts} |"


def write(results: list[Result]) -> None:
    """Commit the figures: a table to read and the same as JSON."""
    facts = about()
    listed = {"about": facts, "summary": headline(results), "cases": [asdict(result) for result in results]}
    (RESULTS / "memory.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    lines = [
        "# Accumulating more than memory holds",
        "",
        *(f"{key}: {value}  " for key, value in facts.items()),
        "",
    ]
    lines += ["MiB; the peak is that of the largest process that sums; the error is against float64 patches.", ""]
    lines += ["| case | store | limit | projected | peak | within | images | blocks | tasks | seconds | error |",
              "|---|" + "---:|" * 4 + "---|" + "---:|" * 5]  # fmt: skip
    (RESULTS / "memory.md").write_text("\n".join([*lines, *map(line, results)]) + "\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small store and a relative limit, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--folder", type=Path, help="where 11 GiB are free; the system's temporary folder if not")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for part in (activations_larger_than_memory, gram_larger_than_memory):
        for result in part(arguments.folder, arguments.quick):
            results.append(result)
            print(line(result), file=sys.stderr, flush=True)
    if arguments.write:
        write(results)
    if arguments.json:
        print(json.dumps(headline(results)))


if __name__ == "__main__":
    main()
