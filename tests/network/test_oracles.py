"""Torch-Pruning and torch-kirigami as oracles: the same groups where they are right.

What Torch-Pruning 1.6.1 makes of each adversarial net was measured: it removes one channel, and the result is
compared with the masked twin. Those it gets wrong, silently or with a crash, are groups that are found here.
"""

from __future__ import annotations

import copy
from importlib.metadata import version

import adversarial_nets as nets
import pytest
import torch
import torchvision
from torch import nn

from streamsparse.network import find_groups, mask, prune
from streamsparse.types import ChannelGraph, ChannelGroup, Role

torch_pruning = pytest.importorskip("torch_pruning")
torch_kirigami = pytest.importorskip("torch_kirigami")
MEASURED = "1.6.1"

MODELS = ("resnet18", "vgg11_bn", "mobilenet_v2", "squeezenet1_1", "mnasnet0_5")
RIGHT = ("Net", "RepeatedConcat", "ShapeDependent", "Normalised", "SqueezeExcitation", "Residual", "SharedModule")
SILENTLY_WRONG = ("PaddedShortcut", "NhwcFlatten", "CoordinatePlane", "Tied")
CRASHES = ("ChannelBuffer", "SplitTrunk", "GroupNormalised", "GroupedAligned", "Functional", "FrozenParameters")

Cut = set[tuple[str, str, tuple[int, ...]]]


def theirs(model: nn.Module, image: torch.Tensor, layer: str, index: list[int]) -> Cut:
    """(module, "in" or "out", channels) that Torch-Pruning cuts of convolutions and linear layers."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, image)
    module = model.get_submodule(layer)
    linear = isinstance(module, nn.Linear)
    cut = torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[tuple[str, str], set[int]] = {}
    for item in graph.get_pruning_group(module, cut, idxs=index).items:
        target, handler = item.dep.target.module, item.dep.handler.__name__
        depthwise = isinstance(target, nn.Conv2d) and target.groups > 1
        if isinstance(target, nn.Conv2d | nn.Linear):
            side = "in" if "in_channels" in handler and not depthwise else "out"
            found.setdefault((names[id(target)], side), set()).update(int(i) for i in item.idxs)
    return {(name, side, tuple(sorted(channels))) for (name, side), channels in found.items()}


def ours(group: ChannelGroup, position: int) -> Cut:
    """The same of one of our positions, from the weights' slices."""
    return {
        (s.tensor.removesuffix(".weight"), "in" if s.role is Role.CONSUMER else "out", s.index[position])
        for s in group.slices
        if s.tensor.endswith(".weight") and (s.role is not Role.PASS_THROUGH or is_convolution(group, s.tensor))
    }


def is_convolution(group: ChannelGroup, tensor: str) -> bool:
    """Whether a pass-through weight is a depthwise convolution's: a normalisation has a bias beside it here."""
    return f"{tensor.removesuffix('.weight')}.bias" not in {s.tensor for s in group.slices}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # Torch-Pruning's own deprecated calls
def test_the_same_groups_on_ordinary_models(name: str) -> None:
    model = getattr(torchvision.models, name)(weights=None).eval()
    image = torch.randn(1, 3, 64, 64)
    graph = find_groups(model, image, trial=False)
    assert graph.groups
    for group in graph.groups[:: max(1, len(graph.groups) // 6)]:
        position = group.size // 2
        made = next(s for s in group.slices if s.role is Role.PRODUCER)
        assert ours(group, position) == theirs(model, image, group.name, list(made.index[position])), group.name


def outcome(net: nn.Module, graph: ChannelGraph) -> str:
    """What comes of Torch-Pruning's removal of the stem's first channel: right, wrong or crash."""
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    group = graph.group("stem")
    made = next(s for s in group.slices if s.tensor == "stem.weight")
    keep = {"stem": list(range(1, group.size))}
    masked, pruned = mask(net, graph, keep)(image), prune(net, graph, keep)(image)
    torch.testing.assert_close(pruned, masked, rtol=1e-9, atol=1e-11)
    twin = copy.deepcopy(net)
    try:
        dependencies = torch_pruning.DependencyGraph().build_dependency(twin, image)
        cut = torch_pruning.prune_conv_out_channels
        dependencies.get_pruning_group(twin.stem, cut, idxs=list(made.index[0])).prune()
        result = twin(image)
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return "crash"
    if result.shape != masked.shape:
        return "wrong"
    return "right" if torch.allclose(result, masked, rtol=1e-9) else "wrong"


@pytest.mark.skipif(version("torch-pruning") != MEASURED, reason=f"measured with {MEASURED}")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "right") for name in RIGHT),
        *((name, "wrong") for name in SILENTLY_WRONG),
        *((name, "crash") for name in CRASHES),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Torch-Pruning's own deprecated calls
def test_adversarial_nets_are_found_whatever_the_oracle_makes_of_them(name: str, expected: str) -> None:
    torch.manual_seed(0)
    net = getattr(nets, name)().double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    assert outcome(net, find_groups(net, nets.IMAGE.double())) == expected


KIRIGAMI_RESOLVES = (
    "Net", "Residual", "FlattenedConcat", "ConcatThenFlatten", "NhwcFlatten", "RepeatedConcat",
)  # fmt: skip
KIRIGAMI_REFUSES = ("PaddedShortcut", "CoordinatePlane", "SqueezeExcitation")  # the last by `[:, :, None, None]`


def kirigami(net: nn.Module, index: int) -> set[tuple[str, int, tuple[int, ...]]] | None:
    """(parameter, dimension, entries) that torch-kirigami cuts with one channel of the stem; None: it refuses."""
    from torch_kirigami.pruning import Pruner

    pruner = Pruner(net, graph=torch_kirigami.DependencyGraph.build(net, args=(nets.IMAGE,)))
    candidates = pruner.discover_candidates().candidates
    (candidate,) = [c for c in candidates if c.key == f"stem.weight:0:{index:012d}"]
    impact, cut = pruner.impact([candidate]), set()
    if not impact.complete:
        return None
    for selection in impact.selections.values():
        for region in selection.regions if selection.tensor.kind == "parameter" else ():
            for dim, entries in enumerate(region.axes):
                if len(entries) < selection.tensor.shape[dim]:
                    cut.add((selection.tensor.paths[0], dim, entries))
    found: dict[tuple[str, int], set[int]] = {}
    for path, dim, entries in cut:
        found.setdefault((path, dim), set()).update(int(entry) for entry in entries)
    return {(path, dim, tuple(sorted(entries))) for (path, dim), entries in found.items()}


@pytest.mark.parametrize("name", [*KIRIGAMI_RESOLVES, *KIRIGAMI_REFUSES])
def test_the_same_entries_as_kirigami_where_it_resolves(name: str) -> None:
    net = getattr(nets, name)().eval()
    group = find_groups(net, nets.IMAGE).group("stem")
    parameters = {key for key, _ in net.named_parameters()}
    made = next(s for s in group.slices if s.tensor == "stem.weight")
    position = group.size // 2
    mine = {(s.tensor, s.dim, s.index[position]) for s in group.slices if s.tensor in parameters}
    assert kirigami(net, made.index[position][0]) == (mine if name in KIRIGAMI_RESOLVES else None)
