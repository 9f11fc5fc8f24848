"""The report of a pruned network against the network itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import streamsparse as ss


class Small(nn.Module):
    """A residual trunk, a depthwise convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.inner = nn.Conv2d(8, 12, 1)
        self.outer = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        trunk = self.stem(images).relu()
        trunk = trunk + self.outer(self.inner(self.depthwise(trunk)).relu())
        logits: torch.Tensor = self.head(trunk.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def result() -> ss.Result:
    torch.manual_seed(0)
    images = torch.randn(30, 3, 8, 8)
    return ss.prune(Small().eval(), images, channels={"stem": 5, "inner": 7}, stages=1)


def test_layers_are_those_of_the_pruned_model(result: ss.Result) -> None:
    report = {layer.layer: layer for layer in result.report}
    assert list(report) == ["stem", "depthwise", "inner", "outer", "head"]
    for name, layer in report.items():
        module = result.model.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            assert (layer.inputs_kept, layer.outputs_kept) == (module.in_channels, module.out_channels)
        assert layer.costs.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert (report["depthwise"].inputs, report["depthwise"].inputs_kept) == (8, 5)


def test_layers_add_up_to_the_plan(result: ss.Result) -> None:
    for total, name in (
        (result.solution.plan.costs, "costs"),
        (result.solution.plan.original_costs, "original_costs"),
    ):
        for quantity in ("parameters", "macs", "bytes"):
            assert sum(getattr(getattr(layer, name), quantity) for layer in result.report) == getattr(
                total, quantity
            )


def test_errors_stand_where_weights_were_estimated(result: ss.Result) -> None:
    with_errors = {layer.layer for layer in result.report if layer.held_out_error is not None}
    assert with_errors == {"inner", "outer", "head"}


def test_one_input_channel_is_not_depthwise() -> None:
    """A first convolution on grey images keeps its input whatever goes of its outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    report = ss.prune(model, torch.randn(20, 1, 8, 8), channels={"0": 3}, stages=1).report
    assert [(layer.inputs_kept, layer.outputs_kept) for layer in report] == [(1, 3), (3, 4), (64, 3)]
