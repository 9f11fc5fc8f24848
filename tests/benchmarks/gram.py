"""Statistics by shifted products against unfold + matmul and against the layer's own forward.

    python -m tests.benchmarks.gram [--quick] [--json] [--write]

Every distinct layer of VGG-16 and ResNet-18 at 32 pixels and ResNet-50 at 224, on one and two threads, float32.
All three compute on the same images in turns; figures are medians of the repeats. "Statistics" are the Gram, the
cross term and the sums, for us and for unfold + matmul; the Gram alone is listed beside them. Totals count each
layer as often as its network has it. A linear layer, one patch per image, is measured on 512 images: a chunk of
its activations holds as many.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamsparse.kernels.gram_plan import gram_plan
from streamsparse.kernels.patches import patches, responses
from streamsparse.kernels.shift_sums import empty_shifts, finish
from streamsparse.kernels.shifts import update_shifts
from streamsparse.types import LayerGeometry
from tests.benchmarks.machine import about

RESULTS = Path(__file__).parent / "results"
UNFOLD_BYTES = 64 * 2**20
IMAGES = {"vgg16": 64, "resnet18": 64, "resnet50": 8}
QUICK = {"vgg16": 24, "resnet50": 2}
LINEAR_IMAGES = 512
SHORT_SECONDS, MOST_REPEATS = 1.0, 31  # short layers are repeated more often


@dataclass(frozen=True)
class Result:
    """Seconds (medians) of one layer on some threads; `error` against float64 patches, `occurs` in its network."""

    network: str
    layer: str
    method: str
    images: int
    threads: int
    occurs: int
    statistics: float
    statistics_own_responses: float
    unfold: float
    unfold_gram: float
    forward: float
    error: float
    plain_3x3: bool

    @property
    def speedup(self) -> float:
        """Over unfold + matmul, for the same statistics."""
        return self.unfold / self.statistics


def network_layers(name: str) -> dict[LayerGeometry, int]:
    """Distinct layers of a network and how often each occurs; the layer's name tells its shape."""
    import torchvision

    with torch.device("meta"):
        if name == "vgg16":
            features = torchvision.models.vgg16(weights=None, init_weights=False).features
            model: nn.Module = nn.Sequential(features, nn.Flatten(), nn.Linear(512, 10))
        else:
            model = getattr(torchvision.models, name)(weights=None)
        if name == "resnet18":
            model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
        found: Counter[LayerGeometry] = Counter()

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[layer_geometry(module, inputs[0], output)] += 1

        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(record)
        side = 224 if name == "resnet50" else 32
        model.eval()(torch.empty(1, 3, side, side))
    return dict(found)


def layer_geometry(module: nn.Module, inputs: Tensor, output: Tensor) -> LayerGeometry:
    """Of a module that was called with these shapes."""
    shapes = tuple(inputs.shape[1:]), tuple(output.shape[1:])
    if isinstance(module, nn.Linear):
        sizes = module.in_features, module.out_features
        return LayerGeometry(
            f"linear {sizes[0]}→{sizes[1]}", "linear", *sizes, (), (), (), (), 1, "zeros", True, *shapes
        )
    assert isinstance(module, nn.Conv2d)
    kernel, stride, channels = module.kernel_size, module.stride, (module.in_channels, module.out_channels)
    step = "" if stride == (1, 1) else f" /{stride[0]}"
    name = f"{kernel[0]}×{kernel[1]}{step} {channels[0]}→{channels[1]} @{inputs.shape[-1]}"
    padding = tuple((int(size), int(size)) for size in module.padding)
    return LayerGeometry(
        name, "conv2d", *channels, kernel, stride, padding, module.dilation, module.groups, "zeros", True, *shapes
    )  # fmt: skip


def forward(inputs: Tensor, weight: Tensor, geometry: LayerGeometry) -> Tensor:
    """The layer itself, without bias."""
    if geometry.kind == "linear":
        return F.linear(inputs, weight)
    padding = [before for before, _ in geometry.padding]
    return F.conv2d(inputs, weight, None, geometry.stride, padding, geometry.dilation, geometry.groups)


def unfold_and_multiply(inputs: Tensor, outputs: Tensor | None, geometry: LayerGeometry) -> tuple[Tensor, Tensor]:
    """Gram and cross as others form them: unfold, reshape, PᵀP and PᵀY in float32, in blocks of bounded bytes."""
    gram = torch.zeros(geometry.columns, geometry.columns)
    cross = torch.zeros(geometry.columns, geometry.out_channels)
    step = max(1, UNFOLD_BYTES // (4 * geometry.columns * geometry.patches_per_image))
    for first in range(0, inputs.shape[0], step):
        rows = patches(inputs[first : first + step], geometry)[0]
        gram += rows.T @ rows
        if outputs is not None:
            cross += rows.T @ responses(outputs[first : first + step], geometry)[0]
    return gram, cross


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(network: str, geometry: LayerGeometry, occurs: int, images: int, threads: int, repeats: int) -> Result:
    """One layer; the contestants take turns, so that they share the machine's ups and downs."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    inputs = torch.randn(images, *geometry.input_shape).relu()
    shape = (geometry.out_channels, geometry.in_channels, *geometry.kernel)
    weight = torch.randn(shape) / math.sqrt(geometry.columns)
    outputs, sums = forward(inputs, weight, geometry), empty_shifts(geometry)
    contestants: tuple[Callable[[], object], ...] = (
        lambda: update_shifts(sums, inputs, outputs, geometry),
        lambda: update_shifts(sums, inputs, None, geometry),
        lambda: unfold_and_multiply(inputs, outputs, geometry),
        lambda: unfold_and_multiply(inputs, None, geometry),
        lambda: forward(inputs, weight, geometry),
    )
    for work in (contestants[0], contestants[-1]):  # libraries compile their kernels at the first call
        work()
    times: list[list[float]] = []
    while len(times) < repeats or (sum(map(sum, times)) < SHORT_SECONDS and len(times) < MOST_REPEATS):
        times.append([seconds(work) for work in contestants])
    kernel = geometry.kernel == (3, 3) and geometry.stride == (1, 1)
    error = relative_error(inputs, outputs, geometry) if threads == 1 else 0.0
    ours, own, unfold, unfold_gram, own_forward = (median(column) for column in zip(*times, strict=True))
    return Result(
        network, geometry.layer, gram_plan(geometry).method, images, threads, occurs, ours, own, unfold,
        unfold_gram, own_forward, error, kernel,
    )  # fmt: skip


def relative_error(inputs: Tensor, outputs: Tensor, geometry: LayerGeometry) -> float:
    """Norm-wise, of Gram and cross over a quarter of the images, against float64 patches."""
    inputs, outputs = inputs[: max(2, len(inputs) // 4)], outputs[: max(2, len(inputs) // 4)]
    sums = empty_shifts(geometry)
    update_shifts(sums, inputs, outputs, geometry)
    found = finish(sums, geometry)
    gram, cross = torch.zeros_like(found.gram[0]), torch.zeros_like(found.cross[0])
    for image, response in zip(torch.split(inputs, 1), torch.split(outputs, 1), strict=True):
        rows = patches(image.double(), geometry)[0]
        gram.addmm_(rows.T, rows)
        cross.addmm_(rows.T, responses(response.double(), geometry)[0])
    pairs = ((found.gram[0], gram), (found.cross[0], cross))
    return max(float((ours - exact).norm() / exact.norm()) for ours, exact in pairs)


def sweep(images: dict[str, int], thread_counts: list[int], repeats: int) -> Iterator[Result]:
    """All layers; a layer that two networks share at one batch size is measured once per network."""
    for threads in thread_counts:
        for network, count in images.items():
            for geometry, occurs in network_layers(network).items():
                images_used = LINEAR_IMAGES if geometry.kind == "linear" else count
                yield measure(network, geometry, occurs, images_used, threads, repeats)


def summary(results: list[Result]) -> dict[str, float]:
    """The figures to compare, over the results of one thread count."""
    plain = [result for result in results if result.plain_3x3]
    return {
        "speedup_geomean": geometric_mean([result.speedup for result in plain]),
        "speedup_min": min(result.speedup for result in results),
        "cost_over_forward": total(results, "statistics") / total(results, "forward"),
        "max_relative_error": max(result.error for result in results),
        "speedup_gram_geomean": geometric_mean([r.unfold_gram / r.statistics_own_responses for r in plain]),
        "cost_own_responses_over_forward": total(results, "statistics_own_responses") / total(results, "forward"),
    }


def total(results: list[Result], field: str) -> float:
    """Seconds of whole networks."""
    return sum(result.occurs * float(getattr(result, field)) for result in results)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summaries(results: list[Result]) -> dict[str, dict[str, float]]:
    """By thread count, and by network within it."""
    found = {}
    for threads in sorted({result.threads for result in results}):
        chosen = [result for result in results if result.threads == threads]
        found[f"{threads} thread(s)"] = summary(chosen)
        for network in dict.fromkeys(result.network for result in chosen):
            found[f"{threads} thread(s), {network}"] = summary([r for r in chosen if r.network == network])
    return found


def line(result: Result) -> str:
    """One row of the table."""
    times = (result.statistics, result.unfold, result.forward)
    return (
        f"| {result.network} | {result.layer} | {result.occurs} | {result.method} | {result.threads} | "
        + " | ".join(f"{1e3 * value:.1f}" for value in times)
        + f" | {result.speedup:.1f} | {result.unfold_gram / result.statistics_own_responses:.1f} | "
        f"{result.statistics / result.forward:.2f} | {result.statistics_own_responses / result.forward:.2f} | "
        + (f"{result.error:.0e} |" if result.error else "|")
    )


def write(results: list[Result]) -> None:
    """Commit the figures: a table to read and the same as JSON."""
    facts, totals = about(), summaries(results)
    RESULTS.mkdir(exist_ok=True)
    listed = {"about": facts, "summary": totals, "layers": [asdict(result) for result in results]}
    (RESULTS / "gram.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    lines = ["# Statistics against unfold + matmul and the forward pass", ""]
    lines += [
        *(f"{key}: {value}  " for key, value in facts.items()),
        "",
        "| | " + " | ".join(next(iter(totals.values()))) + " |",
    ]
    lines += ["|---|" + "---:|" * len(next(iter(totals.values())))]
    lines += [
        f"| {key} | " + " | ".join(f"{v:.3g}" for v in values.values()) + " |" for key, values in totals.items()
    ]
    lines += ["", "Milliseconds; x: times faster than unfold + matmul; own: responses derived from the Gram.", ""]
    lines += ["| network | layer | occurs | method | threads | statistics | unfold | forward | x | x, Gram only | "
              "statistics/forward | own/forward | error |", "|---|---|---:|---|" + "---:|" * 9]  # fmt: skip
    lines += [line(result) for result in results]
    (RESULTS / "gram.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run the sweep and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images, one thread, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts of the full run")
    arguments = parser.parse_args()
    results = []
    with torch.no_grad():
        for result in sweep(QUICK, [1], 2) if arguments.quick else sweep(IMAGES, arguments.threads, 3):
            results.append(result)
            print(line(result), file=sys.stderr, flush=True)
    for key, values in summaries(results).items():
        print(key, " ".join(f"{name}={value:.3g}" for name, value in values.items()), file=sys.stderr)
    if arguments.write:
        write(results)
    if arguments.json:
        print(json.dumps(summary([r for r in results if r.threads == results[0].threads])))


if __name__ == "__main__":
    main()
