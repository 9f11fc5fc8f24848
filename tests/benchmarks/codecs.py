"""Codecs on real activations: how much they save, how fast they are, and what they cost the Gram.

    python -m tests.benchmarks.codecs [--quick] [--json] [--write] [--repeats N]

Networks: the LeNet that comes with the package over MNIST, and a VGG-16 over Fashion-MNIST where `../shared` beside
the repository has both. The inputs and outputs of every consumer layer are written batch by batch and read back
through the store, as capture and accumulate do, on the disk of the temporary directory (TMPDIR) with its page
cache; the codecs take turns, and each counts with its fastest repeat, because whatever else runs on the machine can
only slow it down. For every codec:

    stored share stored bytes over raw float32 bytes
    write, read  megabytes (10^6) of raw float32 activations per second, so that dtypes compare by images per second
    per CPU s    the same per second of processor time of all threads, which other programs hardly change
    gram error   largest over the layers of ‖G − G₀‖/‖G₀‖ (Frobenius), G from the stored inputs and G₀ from the
                 unrounded float32 inputs, both by float64 products of patches
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.lenet_stages import trained_lenet
from pipelines.mnist import load_embedded, normalise
from pipelines.networks import vgg16
from streamsparse.capture import CaptureSettings
from streamsparse.capture.plan import plan_stream
from streamsparse.capture.taps import Taps, Values
from streamsparse.errors import DataError
from streamsparse.kernels.patches import patches
from streamsparse.network import find_groups
from streamsparse.store import Run
from streamsparse.store.codecs import loss, parse_codec, rounded
from streamsparse.store.stream import StreamPlan
from streamsparse.types import LayerGeometry
from tests.benchmarks.machine import about

RESULTS = Path(__file__).parent / "results"
GRAM_LAYERS = ("features.3", "features.10", "features.17", "features.27", "features.40", "classifier")
CODECS = {
    "float16": (
        "none", "zstd:1", "zstd:3", "zstd:9", "gzip:1", "blosc:lz4", "blosc:lz4:1:bitshuffle", "blosc:zstd:1",
        "blosc:zstd:1:shuffle", "blosc:zstd:1:bitshuffle", "bitround:7+zstd:1", "bitround:4+zstd:1",
    ),
    "float32": (
        "none", "zstd:1", "zstd:3", "blosc:lz4", "blosc:zstd:1:shuffle", "blosc:zstd:1:bitshuffle",
        "bitround:10+zstd:1", "bitround:10+blosc:zstd:1:bitshuffle", "bitround:7+zstd:1",
        "bitround:7+blosc:zstd:1:bitshuffle",
    ),
}  # fmt: skip
QUICK = {
    "float16": ("none", "zstd:1", "blosc:lz4", "bitround:7+zstd:1"),
    "float32": ("zstd:1", "bitround:10+zstd:1"),
}


@dataclass(frozen=True)
class Subject:
    """A network and images for it.

    Attributes:
        name: of both.
        model: trained, in evaluation mode.
        images: preprocessed, float32.
        batch_images: images per batch.
        gram_layers: whose Grams are compared; None for all.
    """

    name: str
    model: nn.Module
    images: Tensor
    batch_images: int
    gram_layers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Result:
    """One codec on one network; the module's text says what the figures are."""

    network: str
    dtype: str
    codec: str
    stored_share: float
    write_megabytes_per_second: float
    read_megabytes_per_second: float
    write_megabytes_per_cpu_second: float
    read_megabytes_per_cpu_second: float
    gram_error: float
    lossy: bool


def subjects(quick: bool) -> Iterator[Subject]:
    """LeNet, and VGG-16 where its weights and images are there."""
    images, _ = load_embedded("train")
    yield Subject("lenet_mnist", trained_lenet(), normalise(images[: 1000 if quick else 2000]), 250)
    try:
        vgg = vgg16()
    except DataError as error:
        print(f"VGG-16 is left out: {error}", file=sys.stderr)
        return
    sample = vgg.calibration[: 16 if quick else 64][0]
    layers = GRAM_LAYERS[2:] if quick else GRAM_LAYERS
    yield Subject("vgg16_fashion_mnist", vgg.model, sample, 16, layers)


def captured(subject: Subject) -> tuple[StreamPlan, list[Values]]:
    """The plan of a float32 capture, and its batches in memory."""
    example = subject.images[:1]
    graph = find_groups(subject.model, example)
    settings = CaptureSettings("float32", batch_images=subject.batch_images)
    plan = plan_stream(subject.model, graph, example, len(subject.images), settings)
    taps = Taps({layer.geometry.layer: layer.calls for layer in plan.layers}, subject.model)
    return plan, [taps(batch, "float32") for batch in torch.split(subject.images, subject.batch_images)]


@dataclass(frozen=True)
class Times:
    """Wall and processor seconds to write and to read, and what the disk holds then."""

    write: float
    read: float
    write_cpu: float
    read_cpu: float
    stored_bytes: int


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of one call."""
    started, started_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - started_cpu


def timed(plan: StreamPlan, batches: list[Values]) -> Times:
    """Write a shard into a directory of its own, and read it."""
    folder = tempfile.mkdtemp()
    try:
        run = Run.at(folder)
        writer, reader = run.writer(plan), run.reader()
        arrays = [{name: tensor.numpy().astype(plan.dtype) for name, tensor in batch.items()} for batch in batches]

        def write() -> None:
            for index, batch in enumerate(arrays):
                writer.write(index, batch, "0" * 64)

        def read() -> None:
            for batch in reader.require_complete():
                for layer, call, side in arrays[0]:
                    reader.read(batch, layer, call, side)

        (wrote, wrote_cpu), (took, took_cpu) = seconds(write), seconds(read)
        return Times(wrote, took, wrote_cpu, took_cpu, run.documents.size_bytes("activations"))
    finally:
        shutil.rmtree(folder)


def gram(values: list[np.ndarray], geometry: LayerGeometry) -> Tensor:
    """Σ x xᵀ of patches, float64, (groups, columns, columns)."""
    total = torch.zeros(geometry.groups, geometry.columns, geometry.columns, dtype=torch.float64)
    for batch in values:
        rows = patches(torch.from_numpy(batch.astype(np.float64)), geometry)
        total.baddbmm_(rows.transpose(1, 2), rows)
    return total


def gram_errors(subject: Subject, plan: StreamPlan, batches: list[Values]) -> dict[tuple[str, int | None], float]:
    """By dtype and bits of mantissa that are kept: compressors do not change values."""
    chosen = {(dtype, parse_codec(codec).keep_bits): codec for dtype in CODECS for codec in reversed(CODECS[dtype])}
    errors = dict.fromkeys(chosen, 0.0)
    for layer in plan.layers:
        geometry = layer.geometry
        if subject.gram_layers is None or geometry.layer in subject.gram_layers:
            inputs = [batch[geometry.layer, 0, "input"].numpy() for batch in batches]
            exact = gram(inputs, geometry)
            for (dtype, bits), codec in chosen.items():
                stored = [rounded(values.astype(dtype), codec) for values in inputs]
                error = float((gram(stored, geometry) - exact).norm() / exact.norm())
                errors[dtype, bits] = max(errors[dtype, bits], error)
    return errors


def sweep(subject: Subject, codecs: dict[str, tuple[str, ...]], repeats: int) -> list[Result]:
    """All codecs on one network, in turns."""
    plan, batches = captured(subject)
    raw = plan.raw_bytes
    pairs = [(dtype, codec) for dtype, names in codecs.items() for codec in names]
    timed(plan, batches[:1] * plan.batches)  # the first use of everything takes longer
    times: dict[tuple[str, str], list[Times]] = {pair: [] for pair in pairs}
    for _ in range(repeats):
        for dtype, codec in pairs:
            times[dtype, codec].append(timed(replace(plan, dtype=dtype, codec=codec), batches))
    errors = gram_errors(subject, plan, batches)
    return [summary(subject, dtype, codec, raw, times[dtype, codec], errors) for dtype, codec in pairs]


def summary(
    subject: Subject,
    dtype: str,
    codec: str,
    raw_bytes: int,
    times: list[Times],
    errors: dict[tuple[str, int | None], float],
) -> Result:
    """The fastest repeat of each kind counts."""
    speeds = {
        name: raw_bytes / 1e6 / min(getattr(each, name) for each in times)
        for name in ("write", "read", "write_cpu", "read_cpu")
    }
    return Result(
        subject.name, dtype, codec, times[0].stored_bytes / raw_bytes, *speeds.values(),
        errors[dtype, parse_codec(codec).keep_bits], loss(codec, dtype) is not None,
    )  # fmt: skip


def nested(results: list[Result]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Figures by network, dtype and codec."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for one in results:
        figures = {name: value for name, value in asdict(one).items() if isinstance(value, float)}
        found.setdefault(one.network, {}).setdefault(one.dtype, {})[one.codec] = figures
    return found


def line(one: Result) -> str:
    """One row of the table."""
    name = f"| {one.network} | {one.dtype} | {one.codec} | {'lossy' if one.lossy else ''} "
    wall = f"{one.write_megabytes_per_second:.0f} | {one.read_megabytes_per_second:.0f}"
    cpu = f"{one.write_megabytes_per_cpu_second:.0f} | {one.read_megabytes_per_cpu_second:.0f}"
    return f"{name}| {one.stored_share:.3f} | {wall} | {cpu} | {one.gram_error:.1e} |"


def write(results: list[Result], images: dict[str, int]) -> None:
    """Commit the figures: a table to read and the same as JSON."""
    facts = {**about(), "images": ", ".join(f"{name} {count}" for name, count in images.items())}
    listed = {"about": facts, "codecs": [asdict(result) for result in results]}
    (RESULTS / "codecs.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    lines = ["# Codecs on real activations", "", *(f"{key}: {value}  " for key, value in facts.items()), ""]
    lines += [
        "Share: stored over raw float32 bytes. Write and read: 10⁶ raw float32 bytes per second. Gram error:",
        "largest over the layers, relative, against unrounded float32 activations.",
        "",
        "| network | dtype | codec | | share | write | read | write per CPU s | read per CPU s | Gram error |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    (RESULTS / "codecs.md").write_text("\n".join(lines + [line(result) for result in results]) + "\n")


def main() -> None:
    """Run the sweep and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and codecs, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--repeats", type=int, default=5, help="of the full run")
    arguments = parser.parse_args()
    results, images = [], {}
    with torch.no_grad():
        for subject in subjects(arguments.quick):
            images[subject.name] = len(subject.images)
            found = sweep(
                subject, QUICK if arguments.quick else CODECS, 1 if arguments.quick else arguments.repeats
            )
            print("\n".join(map(line, found)), file=sys.stderr, flush=True)
            results += found
    if arguments.write:
        write(results, images)
    if arguments.json:
        print(json.dumps({"codecs": nested(results)}))


if __name__ == "__main__":
    main()
