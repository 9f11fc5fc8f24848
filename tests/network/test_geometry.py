"""Geometry of layers: what a forward hook sees is the regression that is described."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamsparse.network import find_groups
from streamsparse.types import LayerGeometry

IMAGE = torch.randn(2, 4, 9, 11)


class DynamicPadding(nn.Conv2d):
    """Pads in its own forward, as TensorFlow's "same" convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 1, 2)))


LAYERS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False),
    nn.Conv2d(4, 6, 3, dilation=2, padding="same"),
    nn.Conv2d(4, 6, (2, 3), padding="same"),
    nn.Conv2d(4, 6, 3, padding="valid", groups=2),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"),
    nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular"),
    DynamicPadding(4, 6, 3, stride=2),
]


def by_patches(x: Tensor, layer: nn.Conv2d, geometry: LayerGeometry) -> Tensor:
    """The convolution computed from the geometry alone, with explicit patches."""
    padding = [size for pair in reversed(geometry.padding) for size in pair]
    x = F.pad(x, padding, {"zeros": "constant"}.get(geometry.padding_mode, geometry.padding_mode))
    patches = F.unfold(x, geometry.kernel, geometry.dilation, stride=geometry.stride)
    blocks = patches.unflatten(1, (geometry.groups, geometry.columns))  # (images, groups, columns, patches)
    weight = layer.weight.flatten(1).unflatten(0, (geometry.groups, -1))
    y = torch.einsum("gmn,bgnp->bgmp", weight, blocks).flatten(1, 2).unflatten(2, geometry.output_shape[1:])
    return y if layer.bias is None else y + layer.bias[:, None, None]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_geometry_describes_what_the_hook_sees(layer: nn.Conv2d) -> None:
    geometry = find_groups(nn.Sequential(layer), IMAGE).layers["0"]
    assert geometry.input_shape == (4, 9, 11)
    assert geometry.bias == (layer.bias is not None)
    assert (geometry.in_channels, geometry.out_channels, geometry.groups) == (4, 6, layer.groups)
    torch.testing.assert_close(by_patches(IMAGE, layer, geometry), layer(IMAGE))


def test_linear_and_one_dimensional_layers() -> None:
    net = nn.Sequential(nn.Conv1d(3, 4, 5, padding=2), nn.Linear(10, 7))
    layers = find_groups(net, torch.zeros(1, 3, 10)).layers
    assert list(layers) == ["0", "1"]
    assert (layers["0"].kind, layers["0"].taps, layers["0"].patches_per_image) == ("conv1d", 5, 10)
    assert (layers["1"].kind, layers["1"].columns, layers["1"].patches_per_image) == ("linear", 10, 4)


def test_a_weight_that_other_code_uses_is_not_a_hookable_layer() -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.conv2d(x, self.layer.weight))

    graph = find_groups(Borrowing(), IMAGE)
    assert list(graph.layers) == ["last"]
    assert graph.group("layer").size == 6
