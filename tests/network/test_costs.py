"""Measured costs, and the cost model against physically narrower models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.errors import ModelError, UsageError
from streamsparse.kernels.costs import CostModel
from streamsparse.network.costs import cost_model, costs
from streamsparse.network.latency import latency
from streamsparse.types import ChannelGraph, ChannelGroup, Costs, Role, TensorSlice

IMAGE = torch.zeros(2, 1, 28, 28)


class LeNet(nn.Module):
    """The LeNet of the paper, with free widths."""

    def __init__(self, conv0: int = 6, conv1: int = 16, fc1: int = 120, fc2: int = 84) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, conv0, 5, padding=2)
        self.conv1 = nn.Conv2d(conv0, conv1, 5)
        self.fc1 = nn.Linear(conv1 * 25, fc1)
        self.fc2 = nn.Linear(fc1, fc2)
        self.fc3 = nn.Linear(fc2, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.avg_pool2d(self.conv0(images).relu(), 2)
        hidden = nn.functional.avg_pool2d(self.conv1(hidden).relu(), 2)
        return self.fc3(self.fc2(self.fc1(hidden.flatten(1)).relu()).relu())


def group(name: str, size: int, consumer: str, spread: int = 1) -> ChannelGroup:
    plain = tuple((position,) for position in range(size))
    wide = tuple(tuple(range(position * spread, (position + 1) * spread)) for position in range(size))
    return ChannelGroup(
        name,
        size,
        (
            TensorSlice(f"{name}.weight", 0, plain, Role.PRODUCER),
            TensorSlice(f"{name}.bias", 0, plain, Role.PRODUCER),
            TensorSlice(f"{consumer}.weight", 1, wide, Role.CONSUMER),
        ),
        (),
    )


GRAPH = ChannelGraph(
    (group("conv0", 6, "conv1"), group("conv1", 16, "fc1", 25), group("fc1", 120, "fc2"), group("fc2", 84, "fc3")),
    (),
    {},
)


@pytest.fixture(scope="module")
def lenet_costs() -> CostModel:
    return cost_model(LeNet(), GRAPH, IMAGE)


@pytest.mark.parametrize(
    ("counts", "parameters"),
    [
        ({}, 61_706),
        ({"conv1": 8}, 36_498),
        ({"conv1": 4}, 23_894),
        ({"conv1": 8, "fc1": 104, "fc2": 43}, 27_223),
        ({"conv1": 8, "fc1": 40, "fc2": 18}, 10_332),
    ],
)
def test_the_papers_architectures(lenet_costs: CostModel, counts: dict[str, int], parameters: int) -> None:
    assert lenet_costs.parameters(counts) == parameters
    assert lenet_costs.bytes(counts) == 4 * parameters
    assert lenet_costs.costs(counts) == costs(LeNet(**counts), IMAGE)


@given(st.integers(1, 6), st.integers(1, 16), st.integers(1, 120), st.integers(1, 84))
@settings(deadline=None, max_examples=30)
def test_cost_model_equals_the_narrow_model(conv0: int, conv1: int, fc1: int, fc2: int) -> None:
    model = cost_model(LeNet(), GRAPH, IMAGE)
    counts = {"conv0": conv0, "conv1": conv1, "fc1": fc1, "fc2": fc2}
    assert model.exact
    assert model.costs(counts) == costs(LeNet(**counts), IMAGE)
    assert model.costs_of_keep({name: range(count) for name, count in counts.items()}) == model.costs(counts)
    assert CostModel.from_json(json.loads(json.dumps(model.to_json()))).costs(counts) == model.costs(counts)


def test_many_architectures_at_once(lenet_costs: CostModel) -> None:
    counts = np.array([[[6, 16, 120, 84], [6, 8, 40, 18]]])
    assert lenet_costs.parameters(counts).tolist() == [[61_706, 10_332]]
    assert lenet_costs.macs(counts).shape == (1, 2)
    assert lenet_costs.macs(counts)[0, 1] == lenet_costs.macs({"conv1": 8, "fc1": 40, "fc2": 18})


@pytest.mark.parametrize("counts", [{"conv9": 1}, {"conv1": 17}, {"conv1": -1}])
def test_counts_outside_the_groups_are_refused(lenet_costs: CostModel, counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="Kept channels do not fit"):
        lenet_costs.parameters(counts)


@pytest.mark.parametrize("counts", [np.ones((3, 5)), np.array([1.5, 1, 1, 1]), np.array([np.nan, 1, 1, 1])])
def test_count_arrays_outside_the_groups_are_refused(lenet_costs: CostModel, counts: np.ndarray) -> None:
    with pytest.raises(UsageError, match="Kept channels do not fit"):
        lenet_costs.macs(counts)


def test_positions_outside_the_group_are_refused(lenet_costs: CostModel) -> None:
    with pytest.raises(UsageError, match="Kept channels do not fit"):
        lenet_costs.costs_of_keep({"conv1": [3, 16]})


class Halves(nn.Module):
    """The first half of the channels feeds a second convolution too: positions are of two classes."""

    def __init__(self, first: int = 3, second: int = 3) -> None:
        super().__init__()
        self.first = first
        self.source = nn.Conv2d(1, first + second, 3)
        self.norm = nn.BatchNorm2d(first + second)
        self.all = nn.Conv2d(first + second, 4, 3)
        self.part = nn.Conv2d(first, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.source(images))
        return self.all(hidden) + self.part(hidden[:, : self.first, 1:-1, 1:-1])


def test_positions_of_several_classes() -> None:
    plain = tuple((position,) for position in range(6))
    half = ((0,), (1,), (2,), (), (), ())
    slices = [TensorSlice(f"source.{leaf}", 0, plain, Role.PRODUCER) for leaf in ("weight", "bias")]
    slices += [
        TensorSlice(f"norm.{leaf}", 0, plain, Role.PASS_THROUGH)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    ]
    slices.append(TensorSlice("all.weight", 1, plain, Role.CONSUMER))
    slices.append(TensorSlice("part.weight", 1, half, Role.CONSUMER))
    graph = ChannelGraph((ChannelGroup("source", 6, tuple(slices), ()),), (), {})
    model = cost_model(Halves(), graph, IMAGE)
    assert not model.exact
    assert model.costs({}) == costs(Halves(), IMAGE)
    assert model.costs_of_keep({"source": [0, 3, 4]}) == costs(Halves(1, 2), IMAGE)
    assert model.costs_of_keep({"source": [0, 1, 2]}) == costs(Halves(3, 0), IMAGE)
    assert CostModel.from_json(model.to_json()).costs_of_keep({"source": [2]}) == costs(Halves(1, 0), IMAGE)


def test_tied_parameters_count_once() -> None:
    layer = nn.Linear(4, 4)
    tied = nn.Sequential(layer, nn.ReLU(), layer)
    measured = costs(tied, torch.zeros(1, 4))
    assert measured == Costs(parameters=20, macs=32, bytes=80)
    plain = tuple((position,) for position in range(4))
    slices = tuple(
        TensorSlice(f"{path}.weight", dim, plain, Role.PRODUCER) for path in ("0", "2") for dim in (0, 1)
    )
    graph = ChannelGraph((ChannelGroup("0", 4, slices, ()),), (), {})
    assert cost_model(tied, graph, torch.zeros(1, 4)).costs({"0": 2}).parameters == 2 * 2 + 4


def test_weights_that_are_computed_are_attributed() -> None:
    def standardised(channels: int) -> nn.Module:
        convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, channels, 3))
        return nn.Sequential(convolution, nn.Flatten(), nn.Linear(channels * 4, 2))

    plain = tuple((position,) for position in range(8))
    spread = tuple(tuple(range(4 * position, 4 * position + 4)) for position in range(8))
    original = "0.parametrizations.weight.original"
    slices = (
        TensorSlice("0.bias", 0, plain, Role.PRODUCER),
        TensorSlice(f"{original}0", 0, plain, Role.PRODUCER),
        TensorSlice(f"{original}1", 0, plain, Role.PRODUCER),
        TensorSlice("2.weight", 1, spread, Role.CONSUMER),
    )
    graph = ChannelGraph((ChannelGroup("0", 8, slices, ()),), (), {})
    images = torch.zeros(1, 3, 4, 4)
    assert cost_model(standardised(8), graph, images).costs({"0": 3}) == costs(standardised(3), images)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("resnet18", 11_689_512, 1_814_073_344), ("mobilenet_v2", 3_504_872, 300_774_272)],
)
def test_published_figures(name: str, parameters: int, macs: int) -> None:
    model = torchvision.models.get_model(name, weights=None)
    images = torch.zeros(1, 3, 224, 224)
    measured = costs(model, images)
    assert (measured.parameters, measured.macs) == (parameters, macs)
    assert cost_model(model, ChannelGraph((), (), {}), images).costs({}) == measured


def test_attention_is_counted_whole() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    measured = costs(model, torch.zeros(3, 5, 16))
    projections = 4 * 16 * 16 + 2 * 16 * 32
    assert measured.macs == 5 * projections + 2 * 5 * 5 * 16
    modelled = cost_model(model, ChannelGraph((), (), {}), torch.zeros(3, 5, 16))
    assert modelled.constant_macs == 2 * 5 * 5 * 16
    assert modelled.macs({}) == measured.macs


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    model[2].inplace = False
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost_model(model, ChannelGraph((), (), {}), IMAGE)
    costs(model, IMAGE)
    latency(model, IMAGE, batch_sizes=(1,), warm_up=0, repeats=1)
    assert [module.training for module in model] == [True, False, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_does_not_run_is_named() -> None:
    with pytest.raises(ModelError, match="does not run on the example inputs"):
        costs(LeNet(), torch.zeros(1, 3, 28, 28))
    with pytest.raises(ModelError, match="hold no image"):
        costs(LeNet(), torch.zeros(0, 1, 28, 28))


def test_a_graph_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="does not belong"):
        cost_model(nn.Sequential(nn.Conv2d(1, 6, 3)), GRAPH, IMAGE)
    with pytest.raises(ModelError, match="does not belong"):
        cost_model(LeNet(conv0=3), GRAPH, IMAGE)


def test_latency_is_positive_per_batch_size() -> None:
    seconds = latency(LeNet(), IMAGE, batch_sizes=(1, 3), warm_up=1, repeats=3)
    assert list(seconds) == [1, 3]
    assert all(value > 0 for value in seconds.values())
    with pytest.raises(UsageError, match="at least 1"):
        latency(LeNet(), IMAGE, batch_sizes=(0,), warm_up=1, repeats=3)
