"""The paper's tables as data: its layers are our layers, its cuts can be made, and what it leaves open is open."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from pipelines.cifar_cuts import constraints_of, groups_of
from pipelines.cifar_networks import RESNET18, VGG16, Network
from pipelines.cifar_paper import VGG_CONVOLUTIONS, Cut
from streamsparse.errors import UsageError
from streamsparse.kernels.costs import CostModel
from streamsparse.network import find_groups
from streamsparse.network.costs import cost_model
from streamsparse.solve.constraints import left_groups
from streamsparse.types import ChannelGraph

# Table 11, column #parameters: convolutions 0 to 12.
PAPERS_CONVOLUTIONS = (
    1_792, 36_928, 73_856, 147_584, 295_168, 590_080, 590_080, 1_180_160, *(2_359_808,) * 5,
)  # fmt: skip
EVERY_CUT = [(network, cut) for network in (VGG16, RESNET18) for cut in network.cuts]


@cache
def known(name: str) -> tuple[ChannelGraph, CostModel]:
    network = {"vgg16": VGG16, "resnet18": RESNET18}[name]
    model, example = network.fresh().eval(), torch.zeros(1, 3, 32, 32)
    graph = find_groups(model, example)
    return graph, cost_model(model, graph, example)


def test_the_networks_are_the_papers() -> None:
    vgg, resnet = VGG16.fresh(), RESNET18.fresh()
    ours = [sum(p.numel() for p in vgg.get_submodule(name).parameters()) for name in VGG_CONVOLUTIONS]
    assert tuple(ours) == PAPERS_CONVOLUTIONS
    assert sum(p.numel() for p in resnet.parameters()) == 11_173_962  # section 3.2.2
    normalisations = sum(
        p.numel() for m in vgg.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()
    )
    assert sum(p.numel() for p in vgg.parameters()) - normalisations == sum(PAPERS_CONVOLUTIONS) + 5_130
    assert sum(p.numel() for p in VGG16.fresh(7).parameters()) == sum(p.numel() for p in vgg.parameters()) - 3 * 513


@pytest.mark.parametrize(("network", "cut"), EVERY_CUT, ids=lambda part: part.name)
def test_every_cut_can_be_made_within_its_layers(network: Network, cut: Cut) -> None:
    """One channel left in each of its groups is below the sparsity; the other groups stay whole."""
    graph, costs = known(network.name)
    wanted = [group.name for group in groups_of(graph, cut)]
    whole = costs.parameters({})
    assert costs.parameters(dict.fromkeys(wanted, 1)) < (1 - cut.sparsity) * whole
    left = left_groups(graph, constraints_of(graph, cut).leave)
    assert sorted(wanted) == sorted({group.name for group in graph.groups} - set(left))


def test_cuts_name_the_papers_layers() -> None:
    names = {cut.name: [g.name for g in groups_of(known("vgg16")[0], cut)] for cut in VGG16.cuts}
    assert names["conv8-10"] == ["features.24", "features.27", "features.30"]  # what conv7, conv8 and conv9 make
    assert len(names["conv_all"]) == 12
    assert len(names["conv_all+fc"]) == 13
    inner = {cut.name: [g.name for g in groups_of(known("resnet18")[0], cut)] for cut in RESNET18.cuts}
    assert inner["conv(14,16)"] == ["layer4.0.conv1", "layer4.1.conv1"]
    assert inner["conv_all"] == [f"layer{stage}.{block}.conv1" for stage in (2, 3, 4) for block in (0, 1)]
    assert set(inner["conv_all+streams"]) - set(inner["conv_all"]) >= {"conv1", "layer4.0.conv2"}


@pytest.mark.parametrize("counts", [(86, 25, 1), (86, 13, 3), (86, 7, 4)])
def test_the_printed_sparsities_do_not_determine_the_counts(counts: tuple[int, ...]) -> None:
    """Several architectures are 54.59 % and 99.65 % of conv8-10, to the last digit that table 4 prints."""
    costs = known("vgg16")[1]
    keep = dict(zip(("features.24", "features.27", "features.30"), counts, strict=True))
    assert f"{1 - costs.parameters(keep) / costs.parameters({}):.2%}" == "54.59%"
    a, b, c = counts
    local = 1 - (9 * (a * b + b * c + c * 512) + b + c + 512) / sum(PAPERS_CONVOLUTIONS[8:11])
    assert f"{local:.2%}" == "99.65%"


def test_rows_that_contradict_themselves() -> None:
    for first, last, local, network in ((1, 4, 0.109, 0.0002), (5, 7, 0.1699, 0.025)):
        of_network = local * sum(PAPERS_CONVOLUTIONS[first : last + 1]) / known("vgg16")[1].parameters({})
        assert of_network > network + 1e-3
        made = next(cut.sparsity for cut in VGG16.cuts if cut.name == f"conv{first}-{last}")
        assert made == pytest.approx(of_network, rel=0.01)
    assert 1 - (9 * 512 + 512) / sum(PAPERS_CONVOLUTIONS[11:13]) < 0.99945  # conv12 with one input alone


def test_a_layer_that_nothing_feeds() -> None:
    with pytest.raises(UsageError, match="Nothing can be cut"):
        groups_of(known("vgg16")[0], Cut("first", ("features.0",), 0.5))
