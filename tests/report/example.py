"""Facts of runs that could be: a LeNet's, a wide network's, an empty run's, one with hostile names."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from streamsparse.report.facts import (
    Facts,
    FrontPoint,
    GroupFacts,
    LayerFacts,
    Measured,
    NetworkPoint,
    StageFacts,
    Step,
    Walk,
)
from streamsparse.types import Costs, LayerReport

METHODS = ("entropic", "elimination", "exchange")


def lenet_facts() -> Facts:
    """A LeNet at a sixth of its parameters; everything is there."""
    sizes = {"conv1": (20, 9), "conv2": (50, 17), "fc1": (500, 61)}
    return network_facts(sizes, title="LeNet on MNIST", taps=25)


def wide_facts(groups: int = 200) -> Facts:
    """As many groups as DenseNet-201, under its long names."""
    rng = np.random.default_rng(1)
    sizes = {
        f"features.denseblock{1 + number // 50}.denselayer{number % 50}.conv1": (
            int(128 + 16 * (number % 24)),
            int(rng.integers(2, 120)),
        )
        for number in range(groups)
    }
    return network_facts(sizes, title="DenseNet-201 on ImageNet", taps=9, points=300)


def empty_facts() -> Facts:
    """A run that was captured, and nothing more."""
    return Facts(
        title="LeNet on MNIST",
        run="runs/new",
        original=Costs(61_706, 416_520, 246_824),
        pruned=None,
        budget=None,
        predicted_loss=None,
        loss_unit="nats per image",
        mode=None,
        recalibrated=False,
        points=(),
        groups=(),
        layers=(),
        walks=(),
        stages=(),
        measured=(),
        provenance=(),
        notes=(),
    )


def hostile_facts(name: str) -> Facts:
    """`name` wherever a run gives a name or words."""
    facts = lenet_facts()
    return replace(
        facts,
        title=name,
        run=name,
        budget=name,
        mode=name,
        loss_unit=name,
        groups=tuple(
            replace(group, name=name, front=tuple(replace(point, method=name) for point in group.front))
            for group in facts.groups
        ),
        layers=tuple(replace(layer, report=replace(layer.report, layer=name)) for layer in facts.layers),
        walks=tuple(replace(walk, group=name) for walk in facts.walks),
        stages=tuple(replace(stage, stage=name, machine=name, finished=name) for stage in facts.stages),
        measured=tuple(replace(measured, checkpoint=name, data=name) for measured in facts.measured),
        provenance=((name, name),),
        notes=(name,),
    )


def broken_facts() -> Facts:
    """Numbers that are missing, not a number, or zero wherever they can be."""
    facts, bad = lenet_facts(), float("nan")
    front = tuple(FrontPoint(kept, bad if kept == 2 else 0.0, None, "entropic") for kept in (1, 2, 3))
    return replace(
        facts,
        predicted_loss=bad,
        points=(
            *(replace(point, predicted_loss=0.0) for point in facts.points),
            replace(facts.points[0], predicted_loss=bad),
        ),
        groups=tuple(
            replace(group, front=front, predicted_loss=bad, sensitivity=((1, bad), (2, 0.0)))
            for group in facts.groups
        ),
        layers=tuple(
            replace(
                layer,
                report=replace(layer.report, held_out_error=bad),
                measured_error=0.0,
                condition=bad,
                rank=None,
                excess=bad,
                patches=0,
            )
            for layer in facts.layers
        ),
        walks=tuple(replace(walk, losses=(1.0, 1.0), accelerated_losses=(bad,)) for walk in facts.walks),
        stages=(StageFacts("capture", bad, None, "", ""), StageFacts("solve", 0.0, 0, "", "")),
        measured=(replace(facts.measured[0], divergence=bad, original_accuracy=None, pruned_seconds=None),),
    )


def network_facts(sizes: dict[str, tuple[int, int]], *, title: str, taps: int, points: int = 60) -> Facts:
    """A chain of layers, one group between each two; `sizes`: channels of the original and of the pruned."""
    layers = tuple(chain_layers(sizes, taps))
    original = total([layer.report.original_costs for layer in layers])
    pruned = total([layer.report.costs for layer in layers])
    front = tuple(network_points(original, points))
    loss = min(front, key=lambda point: abs(point.costs.parameters - pruned.parameters)).predicted_loss
    return Facts(
        title=title,
        run="runs/example",
        original=original,
        pruned=pruned,
        budget="params=0.2",
        predicted_loss=loss,
        loss_unit="nats per image",
        mode="sequential",
        recalibrated=True,
        points=tuple(sorted((*front, NetworkPoint(pruned, loss)), key=lambda point: point.costs.parameters)),
        groups=tuple(group_facts(number, name, *sizes[name]) for number, name in enumerate(sizes)),
        layers=layers,
        walks=tuple(walk(name, sizes[name][0]) for name in list(sizes)[:3]),
        stages=(
            StageFacts("capture", 41.2, 812_000_000, "2026-03-02T10:15:00Z", "2 cores, 1 thread"),
            StageFacts("accumulate", 95.0, 1_430_000_000, "2026-03-02T10:17:00Z", "2 cores, 2 threads"),
            StageFacts("solve", 212.4, 655_000_000, "2026-03-02T10:21:00Z", "2 cores, 2 threads"),
            StageFacts("write", 1.3, None, "2026-03-02T10:21:05Z", "2 cores, 1 thread"),
        ),
        measured=(
            Measured("pruned", 10_000, "MNIST, test", 0.9906, 0.9859, 0.9881, 0.0214, 0.000812, 0.000301),
            Measured("half", 10_000, "MNIST, test", 0.9906, 0.9906, 0.9983, 0.0009, 0.000812, 0.000511),
        ),
        provenance=(
            ("model", "lenet"),
            ("weights", "sha256:6f1c"),
            ("images", "8,000 of MNIST, train"),
            ("seed", "0"),
        ),
        notes=("Latencies were measured on a machine that did other work.",),
    )


def chain_layers(sizes: dict[str, tuple[int, int]], taps: int) -> list[LayerFacts]:
    """Every layer reads the group before it and writes its own; the last one writes ten classes."""
    widths = [(1, 1), *sizes.values(), (10, 10)]
    names = [*sizes, f"{next(iter(sizes)).split(chr(46))[0]}.classifier" if len(sizes) > 9 else "classifier"]
    rng = np.random.default_rng(0)
    found = []
    for name, (inputs, inputs_kept), (outputs, outputs_kept) in (
        (name, *pair) for name, pair in zip(names, pairwise(widths), strict=True)
    ):
        before, after = inputs * taps * outputs + outputs, inputs_kept * taps * outputs_kept + outputs_kept
        predicted = float(10 ** rng.uniform(-3, -1))
        report = LayerReport(
            layer=name,
            inputs=inputs,
            inputs_kept=inputs_kept,
            outputs=outputs,
            outputs_kept=outputs_kept,
            held_out_error=None if name == names[0] else predicted,
            costs=Costs(after, 64 * after, 4 * after),
            original_costs=Costs(before, 64 * before, 4 * before),
        )
        condition = float(10 ** rng.uniform(1, 8))
        features = inputs * taps
        excess = float(rng.uniform(0.001, 0.12))
        found.append(
            LayerFacts(
                report,
                predicted * float(rng.uniform(0.7, 2.6)),
                features,
                512_000,
                8000,
                condition,
                features,
                excess,
            )
        )
    return found


def total(costs: list[Costs]) -> Costs:
    """The sum."""
    return Costs(sum(c.parameters for c in costs), sum(c.macs for c in costs), sum(c.bytes for c in costs))


def network_points(original: Costs, number: int) -> list[NetworkPoint]:
    """Losses that fall steeply at first; the whole network loses nothing."""
    fractions = np.geomspace(0.02, 1.0, number)
    return [
        NetworkPoint(
            Costs(
                int(fraction * original.parameters),
                int(fraction**0.8 * original.macs * (1 + 0.05 * np.sin(40 * fraction))),
                int(fraction * original.bytes),
            ),
            float(0.9 * (1 / fraction - 1) ** 1.5 / 100),
        )
        for fraction in fractions
    ]


def group_facts(number: int, name: str, size: int, kept: int) -> GroupFacts:
    """Errors that fall like the squared cosine of what is kept."""
    counts = sorted({*np.unique(np.linspace(1, size, min(size, 80)).astype(int)).tolist(), kept})
    errors = {count: 0.6 * (1 - count / size) ** 2 / (1 + count / 4) + 1e-4 for count in counts}
    front = tuple(
        FrontPoint(count, errors[count], errors[count] * 1.08, METHODS[(3 * count // size + number) % 3])
        for count in counts
    )
    measured = sorted({1, size // 8 + 1, size // 4 + 1, size // 2, size})
    losses = tuple((count, 0.8 * (1 - count / size) ** 3 / (1 + number % 5)) for count in measured)
    return GroupFacts(name, size, tuple(range(kept)), (f"after {name}",), (name,), front, errors[kept] / 10, losses)


def walk(name: str, channels: int) -> Walk:
    """Channels leave one after the other while w gathers on the rest."""
    rng = np.random.default_rng(channels)
    worth = np.sort(rng.gamma(0.8, size=channels))[::-1]
    steps = []
    for number, support in enumerate(np.unique(np.geomspace(2, channels, 40).astype(int))[::-1]):
        w = np.zeros(channels)
        w[:support] = worth[:support] ** (1 + number / 20)
        w /= w.sum()
        steps.append(Step(1e-9 * 1.4**number, 1e-6 * (number % 5), int(support), tuple(w.tolist())))
    plain = 0.02 + 0.4 * np.exp(-np.arange(600) / 70)
    fast = 0.02 + 0.4 * np.exp(-np.arange(45) / 2.2)
    return Walk(name, tuple(steps), tuple(plain.tolist()), tuple(fast.tolist()), 1e-6, 1e-7)
