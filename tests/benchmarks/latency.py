"""Latency predicted from the table of a network's layers, against the measured one of the pruned network.

    python -m tests.benchmarks.latency [--solved RUN ...] [--threads N] [--json] [--write]

The paper's VGG-16 and ResNet-18 at 32 pixels, random weights, which time is not concerned with. Every group is cut
to the same fraction of its channels, or each to a fraction of its own, drawn once. A run with fronts (`--solved`)
adds what its front of least loss gives for budgets of seconds. Original and pruned network are timed in turns, and
both are measured fractions of the original: a machine that is slower than when the table was made changes neither.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from pipelines.networks import Resnet18, Vgg16
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.costs import CostModel
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.network import find_groups, prune
from streamsparse.network.costs import cost_model
from streamsparse.network.latency import least_seconds
from streamsparse.network.latency_tables import latency_model
from streamsparse.solve import Constraints, SolveSettings, make_plan
from streamsparse.solve.finding import RunFronts, committed_fronts
from streamsparse.solve.stage import losses_of
from streamsparse.store import Run
from streamsparse.types import ChannelGraph
from tests.benchmarks.machine import about

RESULTS = Path(__file__).parent / "results"
NETWORKS = (("VGG-16", Vgg16), ("ResNet-18", Resnet18))
BATCHES = (1, 32)
UNIFORM = (0.75, 0.5, 0.25)
DRAWN = 5  # architectures
BUDGETS = (0.7, 0.5, 0.35)  # of the original's seconds
TURNS = 5


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with its groups, and the fronts of a run if it has some."""

    name: str
    model: nn.Module
    graph: ChannelGraph
    costs: CostModel
    example: torch.Tensor
    run: Run | None = None
    fronts: RunFronts | None = None


@dataclass(frozen=True)
class Row:
    """One architecture: its seconds as fractions of the original's."""

    network: str
    architecture: str
    batch_images: int
    macs: float
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def subjects(solved: list[Path]) -> Iterator[Subject]:
    """Both networks, then those of the runs."""
    example = torch.rand(1, 3, 32, 32)
    for name, make in NETWORKS:
        torch.manual_seed(0)
        model = make().eval()
        graph = find_groups(model, example)
        yield Subject(name, model, graph, cost_model(model, graph, example), example)
    for path in solved:
        run = Run.at(path)
        captured = read_captured(run)
        fronts = committed_fronts(run, captured, SolveSettings(), Constraints())
        if fronts is None:
            sys.exit(f"{path.name} has no fronts: run `streamsparse solve` on it first")
        found = [
            (name, make) for name, make in NETWORKS if captured.manifest["model"]["class"].endswith(make.__name__)
        ]
        if not found:
            sys.exit(f"{path.name} is of another network: expected {' or '.join(name for name, _ in NETWORKS)}")
        name, make = found[0]
        yield Subject(name, make().eval(), captured.graph, captured.costs, example, run, fronts)


def architectures(subject: Subject, latencies: LatencyModel) -> Iterator[tuple[str, dict[str, int]]]:
    """Names and counts."""
    groups = subject.graph.groups
    if subject.run is None or subject.fronts is None:
        for fraction in UNIFORM:
            yield f"{fraction:.0%} of every group", {g.name: max(1, round(fraction * g.size)) for g in groups}
        generator = np.random.default_rng(0)
        for number in range(DRAWN):
            drawn = generator.uniform(0.1, 1.0, len(groups))
            counts = {g.name: max(1, int(part * g.size)) for g, part in zip(groups, drawn, strict=True)}
            yield f"drawn {number + 1}", counts
        return
    losses, kind = losses_of(subject.run, subject.fronts)
    for fraction in BUDGETS:
        budget = f"latency={fraction}@{latencies.device}"
        plan = make_plan(
            subject.fronts.chosen, subject.costs, budget=budget, losses=losses, loss_kind=kind, latencies=latencies
        )
        yield f"budget {budget}", plan.counts


def rows(subject: Subject) -> Iterator[Row]:
    """Every architecture with every batch."""
    for batch in BATCHES:
        latencies = latency_model(subject.model, subject.graph, subject.costs, subject.example, batch_images=batch)
        for name, counts in architectures(subject, latencies):
            yield row(subject, latencies, name, counts)


def row(subject: Subject, latencies: LatencyModel, name: str, counts: Mapping[str, int]) -> Row:
    """Prune, and time both in turns."""
    sizes = {group.name: group.size for group in subject.graph.groups}
    keep = {group: tuple(range(count)) for group, count in counts.items() if count < sizes[group]}
    pruned = prune(subject.model, subject.graph, keep).eval()
    fractions = []
    for _ in range(TURNS):
        before = least_seconds(subject.model, subject.example, latencies.batch_images)
        fractions.append(least_seconds(pruned, subject.example, latencies.batch_images) / before)
    whole = subject.costs.macs({})
    return Row(
        subject.name, name, latencies.batch_images, subject.costs.macs(counts) / whole,
        float(latencies.seconds(counts)) / latencies.whole_seconds, median(fractions),
    )  # fmt: skip


def page(found: list[Row], facts: Mapping[str, object]) -> str:
    """The figures as Markdown."""
    lines = ["# Latency, predicted and measured", "", *(__doc__ or "").strip().split("\n\n")[2:], ""]
    lines += [f"{name}: {value}  " for name, value in facts.items()]
    lines += ["", *(f"- {words}" for words in summary(found))]
    lines += ["", "| network | architecture | images | MACs | predicted | measured | predicted / measured |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for one in found:
        shown = " | ".join(f"{100 * value:.1f} %" for value in (one.macs, one.predicted, one.measured))
        lines.append(f"| {one.network} | {one.architecture} | {one.batch_images} | {shown} | {one.ratio:.2f} |")
    return "\n".join([*lines, ""])


def summary(found: list[Row]) -> list[str]:
    """By number of images: how far the prediction is off, and how far a prediction by MACs would be."""
    lines = []
    for batch in BATCHES:
        own = [one for one in found if one.batch_images == batch]
        off = [abs(np.log(one.ratio)) for one in own]
        by_macs = [abs(np.log(one.macs / one.measured)) for one in own]
        factors = [float(np.exp(value)) for value in (median(off), max(off), median(by_macs), max(by_macs))]
        lines.append(
            f"{batch} at a time: off by a factor of {factors[0]:.2f} in the median, {factors[1]:.2f} at most; "
            f"in proportion to MACs: {factors[2]:.2f} and {factors[3]:.2f}"
        )
    return lines


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solved", type=Path, nargs="+", default=[], help="runs of 32-pixel networks with fronts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write results/latency.json and .md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = {**about(), "threads": arguments.threads}
    found = []
    for subject in subjects(arguments.solved):
        for one in rows(subject):
            found.append(one)
            print(one, file=sys.stderr, flush=True)
    print(page(found, facts))
    document = {"about": facts, "rows": [asdict(one) for one in found]}
    if arguments.write:
        (RESULTS / "latency.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / "latency.md").write_text(page(found, facts))
    if arguments.json:
        print(json.dumps(document))


if __name__ == "__main__":
    main()
