"""Statistics for the solver's benchmark: the trained VGG-16 where it is at hand, LeNet, or random images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipelines.networks import lenet, vgg16
from streamsparse.accumulate import accumulate
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import DataError
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.folds import FoldSums, empty_folds, finish_folds, update_folds
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGroup, Consumer, LayerGeometry

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Subject:
    """One channel group with the statistics of its consumers."""

    group: ChannelGroup
    geometries: dict[str, LayerGeometry]
    statistics: dict[str, FoldSums]

    @property
    def columns(self) -> int:
        """Of the widest consumer."""
        return max(self.geometries[consumer.layer].columns for consumer in self.group.consumers)

    @property
    def name(self) -> str:
        """Width and taps, as in 512x9."""
        return f"{self.group.size}x{self.columns // self.group.size}"


def trained(network: str, images: int, folder: Path) -> Run:
    """The network's statistics in `folder`, which is kept and resumed."""
    subjects, run = {"lenet": lenet, "vgg16": vgg16}[network](), Run.at(folder)
    settings = CaptureSettings(sink="statistics", batch_images=200, folds=FOLDS, products="float32")
    capture(subjects.model, subjects.calibration, run, images=images, settings=settings)
    accumulate(run)
    return run


def vgg16_is_there() -> bool:
    """Whether the trained network and its images are."""
    try:
        vgg16()
    except DataError:
        return False
    return True


def groups_of(run: Run) -> list[str]:
    """Names of the channel groups, in order of execution."""
    return [group.name for group in read_captured(run).graph.groups]


def subject_of(run: Run, name: str) -> Subject:
    """One group with its statistics in memory."""
    graph, stored = read_captured(run).graph, Statistics(run)
    group = graph.group(name)
    return Subject(group, dict(graph.layers), {each.layer: stored[each.layer] for each in group.consumers})


def subjects_of(run: Run) -> Iterator[Subject]:
    """All groups, one at a time."""
    for name in groups_of(run):
        yield subject_of(run, name)


def synthetic(channels: int, outputs: int, images: int) -> Subject:
    """A 3×3 layer whose channels are smooth, rectified mixtures of fewer maps; weights fade over them."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(images, channels // 3, 10, 10, generator=generator)
    maps = nn.functional.avg_pool2d(maps, 3, stride=1)
    mixing = torch.randn(channels, channels // 3, generator=generator) / (channels // 3) ** 0.5
    inputs = torch.einsum("cm,nmhw->nchw", mixing, maps)
    inputs = torch.relu(inputs + 0.1 * torch.randn(inputs.shape, generator=generator))
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    weight *= torch.rand(channels, generator=generator)[None, :, None, None] ** 3
    responses = nn.functional.conv2d(inputs, weight, padding=1)
    geometry = LayerGeometry(
        "layer", "conv2d", channels, outputs, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros", True,
        (channels, 8, 8), (outputs, 8, 8),
    )  # fmt: skip
    sums = empty_folds(geometry, FOLDS)
    update_folds(sums, inputs, responses, geometry, 0)
    consumer = Consumer("layer", tuple((channel,) for channel in range(channels)))
    group = ChannelGroup("synthetic", channels, (), (consumer,))
    return Subject(group, {"layer": geometry}, {"layer": finish_folds(sums, geometry)})
