"""Channel groups of the models that people have: found, frozen and why, time, memory, trial error.

    python -m tests.benchmarks.network [--quick] [--json] [--write] [--models NAME ...]

Each model runs in a process of its own, so that its peak memory is its own. For each: the groups are found at the
model's own resolution; 30 % of every group is cut at once and compared with the masked twin in float64; the pruned
model is loaded into a fresh original, exported with torch.export (checked against the model), and trained a step.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import resource
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch, here and in the processes: as streamsparse.cli

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from streamsparse.errors import StreamsparseError
from streamsparse.network import find_groups, mask, prune
from streamsparse.network.fixed_statistics import FixedStatistics
from streamsparse.network.resize import channel_groups, fit_to_tensors
from streamsparse.network.surgery import size_attributes
from streamsparse.network.trial import TOLERANCE, randomised, relative_error
from streamsparse.types import ChannelGraph
from streamsparse.write.export import export_pt2

TORCHVISION = (
    "vgg11", "vgg11_bn", "vgg16", "vgg16_bn", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d",
    "densenet121", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
    "efficientnet_v2_s", "convnext_tiny", "squeezenet1_1", "googlenet", "inception_v3", "shufflenet_v2_x1_0",
    "regnet_y_400mf", "mnasnet1_0", "vit_b_16", "swin_t",
)  # fmt: skip
TIMM = (
    "resnext50_32x4d", "res2net50_26w_4s", "cspdarknet53", "cspresnet50", "ghostnet_100", "nf_resnet50",
    "efficientvit_b0", "dla34", "repvgg_a0", "mobilenetv4_conv_small", "edgenext_xx_small", "convnextv2_atto",
    "resnest14d", "selecsls42b", "hrnet_w18_small", "ese_vovnet19b_dw",
)  # fmt: skip
QUICK = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1")
RESULTS = Path(__file__).parent / "results"
CUT_SHARE = 0.3
NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Result:
    """Figures of one model; `frozen` counts channels beside the model's outputs, `why` counts them by cause."""

    groups: int
    positions: int
    approximate: int
    frozen: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    max_trial_error: float
    max_cut_error: float
    trains: bool
    reloads: bool
    exports: str
    ok: bool
    why: dict[str, int]


def names(quick: bool) -> list[str]:
    """The models of the sweep: torchvision's, and timm's where it is installed."""
    if quick:
        return list(QUICK)
    try:
        import timm  # noqa: F401  an optional extra
    except ImportError:
        return list(TORCHVISION)
    return [*TORCHVISION, *(f"timm:{name}" for name in TIMM)]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A freshly initialised model and one image of its own resolution."""
    torch.manual_seed(0)
    side = 299 if "inception" in name else 224
    image = torch.randn(1, 3, side, side)
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), pretrained=False), image
    import torchvision

    slow_initialisation = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return getattr(torchvision.models, name)(weights=None, **slow_initialisation), image


def measure(name: str, export: bool = False) -> Result:
    """Find the groups of one model and check that they hold; `export` the pruned model too, which takes longer."""
    warnings.simplefilter("ignore")  # of the libraries' model code
    model, image = build(name)
    wall, cpu = time.perf_counter(), time.process_time()
    graph = find_groups(model, image)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    keep = kept(graph)
    error = cut_error(model, graph, keep, image)
    pruned = prune(model, graph, keep)
    reloads = loads_again(name, model, graph, keep, pruned, image)
    exports = exported(pruned, image) if export else NOT_TRIED
    trains = takes_a_step(pruned, image)
    trial = max((g.trial_error or 0.0 for g in graph.groups), default=0.0)
    why = Counter[str]()
    for frozen in graph.frozen:
        if frozen.operation != "output":
            why[f"{frozen.operation or 'trial'}: {frozen.reason}"] += frozen.channels
    return Result(
        len(graph.groups), sum(g.size for g in graph.groups), sum(g.approximate is not None for g in graph.groups),
        sum(why.values()), wall, cpu, peak, trial, error, trains, reloads, exports,
        max(trial, error) <= TOLERANCE and trains and reloads and exports in ("yes", NOT_TRIED),
        dict(why.most_common()),
    )  # fmt: skip


def exported(pruned: nn.Module, image: Tensor) -> str:
    """ "yes" if torch.export takes the pruned model and computes the same, else the error's first line."""
    try:
        export_pt2(copy.deepcopy(pruned), image)
    except StreamsparseError as error:
        return f"{error.summary} {(error.got or '').splitlines()[0] if error.got else ''}"[:160]
    return "yes"


def kept(graph: ChannelGraph) -> dict[str, list[int]]:
    """All but a random 30 % of the positions of every group, at least one cut."""
    keep = {}
    for group in graph.groups:
        cut = min(max(1, round(CUT_SHARE * group.size)), group.size - 1)
        keep[group.name] = sorted(torch.randperm(group.size)[cut:].tolist())
    return keep


def cut_error(model: nn.Module, graph: ChannelGraph, keep: dict[str, list[int]], image: Tensor) -> float:
    """Relative error between the masked and the pruned model in float64, statistics of LayerNorm fixed."""
    if not keep:
        return 0.0
    twin = randomised(model, torch.Generator().manual_seed(7))
    image = image.double()
    with torch.no_grad(), FixedStatistics():
        masked = pytree.tree_leaves(mask(twin, graph, keep)(image))
        pruned = pytree.tree_leaves(prune(twin, graph, keep)(image))
        original = pytree.tree_leaves(twin(image))
    if relative_error(original, masked).error < 1e-6:
        return math.inf  # nothing was cut: the comparison would say nothing
    return relative_error(masked, pruned).error


def takes_a_step(pruned: nn.Module, image: Tensor) -> bool:
    """One step of training in training mode: every gradient and every new weight is finite."""
    pruned.train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3)
    outputs = [v for v in pytree.tree_leaves(pruned(torch.cat([image, image]))) if isinstance(v, Tensor)]
    sum((value.float().pow(2).mean() for value in outputs), torch.zeros(())).backward()
    optimizer.step()
    tensors = [t for p in pruned.parameters() for t in (p, p.grad) if t is not None]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def loads_again(
    name: str, model: nn.Module, graph: ChannelGraph, keep: dict[str, list[int]], pruned: nn.Module, image: Tensor
) -> bool:
    """A fresh original, resized to the pruned model's tensors, gives the same output bit for bit."""
    fresh = fit_to_tensors(build(name)[0], pruned.state_dict(), channel_groups(pruned))
    for path, sizes in size_attributes(model, graph, keep).items():
        for attribute, size in sizes.items():
            setattr(fresh.get_submodule(path), attribute, size)
    with torch.no_grad():
        left, right = (pytree.tree_leaves(m.eval()(image)) for m in (pruned, fresh))
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def sweep(models: Sequence[str]) -> Iterator[tuple[str, Result]]:
    """One model after the other, each in a fresh process."""
    for name in models:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield name, pool.submit(measure, name, export=True).result()


def table(results: dict[str, Result]) -> Table:
    """The figures for a terminal."""
    drawn = Table(title="Channel groups")
    for column in (
        "model",
        "groups",
        "positions",
        "frozen",
        "s",
        "CPU s",
        "GB",
        "trial",
        "30 % cut",
        "exports",
        "ok",
    ):
        drawn.add_column(column, justify="left" if column == "model" else "right")
    for name, r in results.items():
        drawn.add_row(name, *cells(r))
    return drawn


def cells(r: Result) -> list[str]:
    """One row of figures."""
    approximate = f" ({r.approximate} approximate)" if r.approximate else ""
    return [
        f"{r.groups}{approximate}", str(r.positions), str(r.frozen), f"{r.seconds:.1f}", f"{r.cpu_seconds:.1f}",
        f"{r.peak_rss_bytes / 1e9:.2f}", f"{r.max_trial_error:.1e}", f"{r.max_cut_error:.1e}",
        r.exports, "yes" if r.ok else "NO",
    ]  # fmt: skip


def write(results: dict[str, Result]) -> None:
    """Commit the figures: a table to read and the same as JSON."""
    import torchvision

    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load average at the end": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    models = {name: asdict(result) for name, result in results.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "network.json").write_text(json.dumps({"about": about, "models": models}, indent=1) + "\n")
    lines = ["# Channel groups", "", *(f"{key}: {value}  " for key, value in about.items()), ""]
    lines += ["| model | groups | positions | frozen | s | CPU s | GB | trial error | 30 % cut | exports | ok |"]
    lines += ["|---|" + "---:|" * 10]
    lines += ["| " + " | ".join([name, *cells(result)]) + " |" for name, result in results.items()]
    lines += ["", "Frozen channels beside the models' outputs, and why:", ""]
    lines += [f"* {name}: {n} channels, {why}" for name, r in results.items() for why, n in r.why.items()]
    (RESULTS / "network.md").write_text("\n".join(lines) + "\n")


def processor() -> str:
    """Model name of the CPU, where the system tells."""
    info = Path("/proc/cpuinfo")
    listed = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in listed if line.startswith("model name")), platform.processor())


def main() -> None:
    """Run the sweep and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few models, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="torchvision's NAME or timm:NAME")
    arguments = parser.parse_args()
    console, results = Console(stderr=True, width=140), {}
    for name, result in sweep(arguments.models or names(arguments.quick)):
        results[name] = result
        console.print(name, *cells(result))
    console.print(table(results))
    if arguments.write:
        write(results)
    if arguments.json:
        models = {name: {k: v for k, v in asdict(r).items() if k != "why"} for name, r in results.items()}
        print(json.dumps({"models": models}))


if __name__ == "__main__":
    main()
