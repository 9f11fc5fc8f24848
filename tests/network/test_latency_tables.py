"""Predicted latency: exact where it was measured, linear between, and met by the whole model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from streamsparse.errors import UsageError
from streamsparse.kernels.latencies import LatencyModel, LayerTable, check_table
from streamsparse.network import find_groups, latency_tables
from streamsparse.network.costs import cost_model
from streamsparse.network.latency import least_seconds
from streamsparse.network.latency_tables import latency_model

IMAGE = torch.zeros(1, 3, 12, 12)


class Net(nn.Module):
    """A plain, a strided and a depthwise convolution, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.mixed = nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(16 * 25, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.first(images).relu()).relu()
        logits: Tensor = self.head(self.mixed(self.deep(features)).relu().flatten(1))
        return logits


def multiply_adds(model: nn.Module, image: Tensor, batch_images: int, **_: object) -> float:
    """In place of a clock: bilinear in the widths of a layer, and the same on every machine."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image.repeat(batch_images, *[1] * (image.dim() - 1)))
    return float(counter.get_total_flops() // 2)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> LatencyModel:
    monkeypatch.setattr(latency_tables, "least_seconds", multiply_adds)
    model = Net()
    graph = find_groups(model, IMAGE)
    return latency_model(model, graph, cost_model(model, graph, IMAGE), IMAGE, fractions=(0.5, 1.0))


def test_what_is_bilinear_is_predicted_for_every_architecture(measured: LatencyModel) -> None:
    """Above the least widths that were measured; a depthwise layer follows its outputs."""
    costs = measured.costs
    generator = np.random.default_rng(0)
    lowest = -(-np.array(costs.sizes) // 2)
    counts = generator.integers(lowest, np.array(costs.sizes) + 1, (50, len(costs.sizes)))
    assert np.allclose(measured.seconds(counts), costs.macs(counts), rtol=1e-12)
    assert [table.layer for table in measured.layers] == ["first", "second", "deep", "mixed", "head"]


def test_below_the_least_widths_nothing_is_gained(measured: LatencyModel) -> None:
    costs = measured.costs
    half = {name: -(-size // 2) for name, size in zip(costs.groups, costs.sizes, strict=True)}
    assert measured.seconds(dict.fromkeys(costs.groups, 1)) == pytest.approx(measured.seconds(half), rel=0.05)


@given(
    seconds=arrays.arrays(np.float64, (3, 2), elements=st.floats(1e-6, 1.0)),
    outputs=st.floats(1, 16),
    inputs=st.floats(1, 8),
)
def test_between_the_corners_of_its_cell(seconds: np.ndarray, outputs: float, inputs: float) -> None:
    table = LayerTable("layer", (2, 8, 16), (4, 8), seconds, 1)
    found = float(table.at(np.array(outputs), np.array(inputs)))
    assert seconds.min() * (1 - 1e-9) <= found <= seconds.max() * (1 + 1e-9)
    corners = [[float(table.at(np.array(o), np.array(i))) for i in (4.0, 8.0)] for o in (2.0, 8.0, 16.0)]
    assert np.allclose(corners, seconds, rtol=1e-12)


@pytest.mark.parametrize("whole_seconds", [1.0, 1e-9])
def test_the_whole_model_is_met(measured: LatencyModel, whole_seconds: float) -> None:
    """Whether its layers alone take less or more than it does."""
    model = LatencyModel(measured.costs, measured.layers, whole_seconds, "cpu", 1, 1)
    assert float(model.seconds({})) == pytest.approx(whole_seconds, rel=1e-12)
    assert float(model.seconds(dict.fromkeys(model.costs.groups, 1))) < whole_seconds


def test_what_the_layers_do_not_explain_follows_their_outputs(measured: LatencyModel) -> None:
    of_layers = float(measured.whole_seconds)
    model = LatencyModel(measured.costs, measured.layers, 3 * of_layers, "cpu", 1, 1)
    half = {"first": 4, "second": 6, "mixed": 8}
    numbers = (4 * 144 + 6 * 25 + 6 * 25 + 8 * 25 + 10) / (8 * 144 + 12 * 25 + 12 * 25 + 16 * 25 + 10)
    assert float(model.seconds(half)) == pytest.approx(measured.costs.macs(half) + 2 * of_layers * numbers)


def test_survives_json(measured: LatencyModel) -> None:
    again = LatencyModel.from_json(json.loads(json.dumps(measured.to_json())), measured.costs)
    counts = {"first": 5, "mixed": 9}
    assert again.seconds(counts) == measured.seconds(counts)
    assert again.to_json() == measured.to_json()


def test_least_seconds_takes_longer_for_more() -> None:
    layers = [nn.Conv2d(width, width, 3, padding=1) for width in (8, 128)]
    small, large = (least_seconds(layer, torch.zeros(1, layer.in_channels, 32, 32), 4) for layer in layers)
    assert 0 < small < large


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.0, 1.0), (0.5, 1.5)])
def test_fractions_are_checked(fractions: tuple[float, ...]) -> None:
    model = Net()
    graph = find_groups(model, IMAGE)
    with pytest.raises(UsageError, match="fractions"):
        latency_model(model, graph, cost_model(model, graph, IMAGE), IMAGE, fractions=fractions)


@pytest.mark.parametrize(
    ("outputs", "inputs", "shape"), [((2, 2), (1,), (2, 1)), ((), (1,), (0, 1)), ((1, 2), (1,), (1, 1))]
)
def test_tables_are_checked(outputs: tuple[int, ...], inputs: tuple[int, ...], shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="ascending"):
        check_table(outputs, inputs, np.ones(shape))
