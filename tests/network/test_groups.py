"""Channel groups of nets with adversarial wiring: right, or frozen by name."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import adversarial_nets as nets
import pytest
import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.events import Notice
from streamsparse.network import find_groups, mask, prune
from streamsparse.types import ChannelGraph, ChannelGroup, Role


@dataclass(frozen=True)
class Expected:
    """Group sizes by name, and (operation or None for the trial, words of the reason) of what is frozen."""

    net: type[nn.Module]
    groups: dict[str, int]
    frozen: list[tuple[str | None, str]] = field(default_factory=list)


CASES = [
    Expected(nets.Net, {"stem": 8}),
    Expected(nets.FlattenedConcat, {"stem": 8, "left": 2, "right": 6}),
    Expected(nets.ConcatThenFlatten, {"stem": 8, "left": 2, "right": 6}),
    Expected(nets.RepeatedConcat, {"stem": 8}),
    Expected(nets.PixelShuffle, {"stem": 8, "wide": 4}),
    Expected(nets.WeightStandardisation, {"standard": 6}, [("aten.conv2d.default", "computed from other")]),
    Expected(nets.SpatialAttention, {"last": 8}, [("aten.mean.dim", "not followed")]),
    Expected(nets.LiteralView, {"hidden": 7}, [(None, "trial failed")]),
    Expected(nets.ShapeDependent, {"stem": 8}),
    Expected(nets.ChannelBuffer, {"stem": 8}),
    Expected(nets.HiddenBuffer, {"last": 8}, [("aten.sub.Tensor", "not in the state_dict")]),
    Expected(nets.SharedModule, {"stem": 8}),
    Expected(nets.PaddedShortcut, {"stem": 8, "last": 16}, [("aten.add.Tensor", "no channels to remove")]),
    Expected(nets.NhwcFlatten, {"stem": 8}),
    Expected(nets.ChannelShuffle, {"stem": 8, "middle": 4, "last": 8}),
    Expected(nets.SplitTrunk, {"stem": 4, "branch": 6, "last": 8}),
    Expected(nets.LiteralSlice, {}, [("aten.slice.Tensor", "not followed")]),
    Expected(nets.LiteralHalf, {}, [(None, "trial failed")]),
    Expected(nets.RolledChannels, {"last": 4}, [("aten.roll.default", "not followed")]),
    Expected(nets.GroupNormalised, {"stem": 4}),
    Expected(nets.Normalised, {"stem": 8}),
    Expected(nets.LayerNormalised, {"stem": 8}),
    Expected(nets.GroupedAligned, {"stem": 4, "last": 8}),
    Expected(nets.GroupedUnaligned, {"stem": 2}),
    Expected(nets.Depthwise, {"stem": 8, "point": 8}),
    Expected(nets.Functional, {"stem": 8, "kernel": 8, "matrix": 6}),
    Expected(nets.FrozenParameters, {"stem": 8, "last": 8}),
    Expected(nets.SqueezeExcitation, {"stem": 8, "down": 3}),
    Expected(nets.Residual, {"stem": 8, "first": 12}),
    Expected(nets.SoftmaxOverChannels, {"last": 8}, [("aten.softmax.int", "not followed")]),
    Expected(nets.CoordinatePlane, {"stem": 8, "last": 8}),
    Expected(nets.WrittenSlice, {"last": 8}, [("aten.add.Tensor", "no channels to remove")]),
    Expected(nets.Transposed, {"stem": 8, "up": 6}),
    Expected(nets.Tied, {"stem": 8}),
    Expected(nets.Auxiliary, {"stem": 8}),
]


def double(net: nn.Module) -> nn.Module:
    """The net in float64 and evaluation mode, with random biases, scales and statistics, and no dead ReLU."""
    net = net.double().eval()
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return net


def agree(net: nn.Module, graph: ChannelGraph, keep: dict[str, list[int]], image: Tensor) -> None:
    """Masked and pruned compute the same, and something else than the original."""
    with torch.no_grad():
        original, masked, pruned = (m(image) for m in (net, mask(net, graph, keep), prune(net, graph, keep)))
    torch.testing.assert_close(pruned, masked, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(original, masked)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.net.__name__)
def test_groups_are_right_or_frozen_by_name(case: Expected) -> None:
    torch.manual_seed(0)
    graph = find_groups(case.net(), nets.IMAGE)
    found = {group.name: group.size for group in graph.groups}
    assert set(case.groups.items()) <= set(found.items())
    assert sum(found.values()) - sum(case.groups.values()) == extra_positions(graph, case)
    for operation, words in case.frozen:
        matching = [f for f in graph.frozen if f.operation == operation and words in f.reason]
        assert matching
        assert any(f.source is not None and "adversarial_nets.py" in f.source for f in matching)


def extra_positions(graph: ChannelGraph, case: Expected) -> int:
    """Only numbered groups (a producer whose channels go several ways) may come on top."""
    extra = {group.name: group.size for group in graph.groups if group.name not in case.groups}
    assert all("#" in name for name in extra)
    return sum(extra.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.net.__name__)
def test_each_group_alone_and_all_at_once_equal_their_masked_twins(case: Expected) -> None:
    torch.manual_seed(1)
    net = double(case.net())
    graph = find_groups(net, nets.IMAGE.double())
    exact = [group for group in graph.groups if group.approximate is None]
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for group in exact:
        agree(net, graph, {group.name: some(group)}, image)
    if exact:
        agree(net, graph, {group.name: some(group) for group in exact}, image)


def some(group: ChannelGroup) -> list[int]:
    """About 70 % of the positions, at random."""
    count = min(max(1, round(0.7 * group.size)), group.size - 1)
    return torch.randperm(group.size)[:count].tolist()


def test_index_maps_through_flatten_concat_and_repeats() -> None:
    columns = lambda net: {  # noqa: E731
        group.name: group.consumers[-1].inputs for group in find_groups(net, nets.IMAGE).groups
    }
    flattened = columns(nets.FlattenedConcat())
    assert flattened["left"] == tuple(tuple(range(4 * p, 4 * p + 4)) for p in range(2))
    assert flattened["right"][0] == (8, 9, 10, 11)
    assert columns(nets.ConcatThenFlatten()) == flattened
    assert columns(nets.RepeatedConcat())["stem"] == tuple((p, p + 8) for p in range(8))
    assert columns(nets.NhwcFlatten())["stem"][3] == tuple(range(3, 128, 8))


def test_everything_of_a_depthwise_block_is_cut() -> None:
    graph = find_groups(nets.Depthwise(), nets.IMAGE)
    slices = {(part.tensor, part.dim): part for part in graph.group("stem").slices}
    assert slices["depthwise.weight", 0].index[3] == (6, 7)
    assert slices["depthwise.weight", 0].role is Role.PASS_THROUGH
    assert slices["point.weight", 1].role is Role.CONSUMER
    assert ("depthwise.weight", 1) not in slices


def test_layer_norm_is_reported_as_approximate() -> None:
    group = find_groups(nets.LayerNormalised(), nets.IMAGE).group("stem")
    assert group.approximate is not None
    assert "LayerNorm" in group.approximate
    assert group.trial_error is not None
    assert group.trial_error <= 1e-9


def test_data_dependent_control_flow_is_refused_with_its_line() -> None:
    with pytest.raises(ModelError, match="cannot follow the model") as caught:
        find_groups(nets.DataDependent(), nets.IMAGE)
    assert "if x.sum() > 0" in str(caught.value)


@pytest.mark.parametrize("inputs", [(), torch.tensor(1.0), ("image",)])
def test_bad_example_inputs_are_refused(inputs: object) -> None:
    with pytest.raises(ModelError, match="example inputs"):
        find_groups(nets.Net(), inputs)  # type: ignore[arg-type]


def test_the_model_is_left_as_it_was() -> None:
    net = nets.Normalised().train()
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(net.state_dict())
    find_groups(net, nets.IMAGE)
    assert net.training
    assert all(module.training for module in net.modules())
    assert len(net._forward_hooks) == 1
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_frozen_parameters_and_tied_weights_stay_so() -> None:
    net = nets.FrozenParameters()
    smaller = prune(net, find_groups(net, nets.IMAGE), {"stem": [0, 5]})
    assert [p.requires_grad for p in smaller.stem.parameters()] == [False, False]  # type: ignore[union-attr]
    tied = nets.Tied()
    smaller = prune(tied, find_groups(tied, nets.IMAGE), {"stem": [1, 2, 3]})
    assert smaller.first.weight is smaller.second.weight  # type: ignore[union-attr]
    assert tuple(smaller.first.weight.shape) == (3, 3, 3, 3)  # type: ignore[union-attr]


def test_what_only_training_executes_is_cut_along() -> None:
    net = nets.Auxiliary()
    smaller = prune(net, find_groups(net, nets.IMAGE), {"stem": [0, 1, 7]}).train()
    outputs = smaller(torch.randn(2, 3, 8, 8))
    sum(output.sum() for output in outputs).backward()
    assert tuple(smaller.auxiliary.weight.grad.shape) == (5, 3)  # type: ignore[union-attr]


def test_a_model_all_of_whose_weights_are_computed_has_no_groups() -> None:
    normed = torch.nn.utils.parametrizations.weight_norm
    model = nn.Sequential(normed(nn.Conv2d(1, 4, 3)), nn.ReLU(), normed(nn.Conv2d(4, 3, 3)))
    graph = find_groups(model.eval(), torch.zeros(1, 1, 8, 8))
    assert graph.groups == ()
    assert graph.frozen == ()


def test_the_output_is_never_offered() -> None:
    graph = find_groups(nn.Sequential(nn.Conv2d(3, 4, 1)), nets.IMAGE)
    assert graph.groups == ()
    assert [(f.layer, f.channels, f.operation) for f in graph.frozen] == [("0", 4, "output")]


def test_a_group_that_fails_its_trial_is_frozen_and_the_rest_is_kept() -> None:
    untried = {group.name for group in find_groups(nets.LiteralView(), nets.IMAGE, trial=False).groups}
    graph = find_groups(nets.LiteralView(), nets.IMAGE)
    assert untried == {"stem", "hidden"}
    assert [group.name for group in graph.groups] == ["hidden"]
    (failed,) = [f for f in graph.frozen if f.layer == "stem"]
    assert failed.channels == 8
    assert failed.source is not None


def test_a_training_mode_that_cannot_be_followed_is_noticed() -> None:
    heard: list[object] = []
    graph = find_groups(nets.Dormant(), nets.IMAGE, on_event=heard.append)
    assert [group.name for group in graph.groups] == ["stem"]
    (notice,) = [event for event in heard if isinstance(event, Notice)]
    assert "training mode" in notice.message
