"""Removing and masking channels: shapes, attributes, independence of the original, errors."""

from __future__ import annotations

import adversarial_nets as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.network import find_groups, mask, prune
from streamsparse.network.surgery import size_attributes


class LiteralSplit(nn.Module):
    """Splits by a width that it holds as an attribute, as Res2Net and CSPNet do."""

    def __init__(self, halves: bool) -> None:
        super().__init__()
        self.halves, self.width = halves, 8 if halves else 4
        self.stem, self.branch, self.head = nets.conv(3, 8), nets.conv(4, 4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).split(self.width // 2 if self.halves else self.width, 1)
        return self.head(torch.cat([left, self.branch(right) + right], 1).mean((2, 3)))


def test_attributes_fit_the_new_shapes() -> None:
    net = nets.Normalised()
    smaller = prune(net, find_groups(net, nets.IMAGE), {"stem": [0, 2, 7]})
    assert smaller.stem.out_channels == 3  # type: ignore[union-attr]
    instance, prelu, batch = (smaller.layers[i] for i in range(3))  # type: ignore[index]
    assert (instance.num_features, prelu.num_parameters, batch.num_features) == (3, 3, 3)
    assert smaller.head.in_features == 3  # type: ignore[union-attr]
    assert net.stem.out_channels == 8


def test_groups_of_grouped_layers_fall() -> None:
    net = nets.GroupedAligned()
    smaller = prune(net, find_groups(net, nets.IMAGE), {"stem": [1, 3]})
    grouped = smaller.grouped
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 4, 8)  # type: ignore[union-attr]
    torch.testing.assert_close(grouped.weight[:4], net.grouped.weight[4:8])  # type: ignore[union-attr, index]
    normalised = nets.GroupNormalised()
    smaller = prune(normalised, find_groups(normalised, nets.IMAGE), {"stem": [0]})
    assert (smaller.norm.num_groups, smaller.norm.num_channels) == (1, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("halves", [False, True])
def test_sizes_held_as_attributes_fall(halves: bool) -> None:
    torch.manual_seed(0)
    net = LiteralSplit(halves).double().eval()
    graph = find_groups(net, nets.IMAGE.double())
    assert graph.group("stem").size == 4
    keep = {"stem": [0, 2, 3]}
    smaller, masked = prune(net, graph, keep), mask(net, graph, keep)
    assert size_attributes(net, graph, keep)[""]["width"] == smaller.width == (6 if halves else 3)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(smaller(image), masked(image), rtol=1e-10, atol=1e-12)


def test_a_pruned_model_shares_nothing_and_trains() -> None:
    net = nets.Residual()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    smaller = prune(net, find_groups(net, nets.IMAGE), {"first": [1, 4, 9]}).train()
    pointers = {p.data_ptr() for p in net.parameters()}
    assert not pointers & {p.data_ptr() for p in smaller.parameters()}
    smaller(torch.randn(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(smaller.parameters(), lr=1.0).step()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_masked_model_shares_nothing_and_has_the_same_shapes() -> None:
    net = nets.Residual()
    twin = mask(net, find_groups(net, nets.IMAGE), {"first": [1, 4, 9]})
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in twin.parameters()}
    columns = twin.second.weight.abs().sum((0, 2, 3)) != 0  # type: ignore[union-attr]
    assert columns.nonzero().flatten().tolist() == [1, 4, 9]


_GRAPH = find_groups(nets.Residual(), nets.IMAGE)


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 7), min_size=1), st.sets(st.integers(0, 11), min_size=1), st.integers(0, 99))
def test_any_choice_equals_its_masked_twin(stem: set[int], first: set[int], seed: int) -> None:
    torch.manual_seed(seed)
    net = nets.Residual().double()
    keep = {"stem": list(stem), "first": list(first)}
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    smaller = prune(net, _GRAPH, keep)
    torch.testing.assert_close(smaller(image), mask(net, _GRAPH, keep)(image), rtol=1e-9, atol=1e-12)
    assert tuple(smaller.first.weight.shape[:2]) == (len(first), len(stem))  # type: ignore[union-attr]


@pytest.mark.parametrize("positions", [[], [0, 0], [8], [-1]])
@pytest.mark.parametrize("cut", [prune, mask])
def test_bad_positions_are_refused(cut: type, positions: list[int]) -> None:
    with pytest.raises(ModelError, match="do not fit the channel group") as caught:
        cut(nets.Residual(), _GRAPH, {"stem": positions})
    assert caught.value.where == "stem"


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(ModelError, match="no such channel group"):
        prune(nets.Residual(), _GRAPH, {"trunk": [0]})


def test_nothing_to_cut_is_a_copy() -> None:
    net = nets.Residual().eval()
    same = prune(net, _GRAPH, {})
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(image), same(image))
