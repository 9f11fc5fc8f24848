"""The trained networks and their images, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines import networks
from streamsparse.errors import DataError
from streamsparse.network import find_groups

FASHION = ("vgg16", "resnet18")


@pytest.mark.parametrize("network", FASHION)
def test_networks_that_are_not_there_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    monkeypatch.setattr(networks, "SHARED", tmp_path)
    with pytest.raises(DataError, match="not there") as raised:
        networks.NETWORKS[network]()
    assert network in str(raised.value.expected)


@pytest.mark.parametrize(("kind", "parameters"), [(networks.Vgg16, 14_728_266), (networks.Resnet18, 11_173_962)])
def test_parameters_are_those_of_the_papers_architectures(kind: type[torch.nn.Module], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in kind().parameters()) == parameters


def test_the_streams_of_the_residual_network_are_groups() -> None:
    graph = find_groups(networks.Resnet18().eval(), torch.zeros(1, 3, 32, 32))
    sizes = {group.name: group.size for group in graph.groups}
    assert sizes["conv1"] == 64
    assert len(graph.group("conv1").consumers) == 4  # layer1's first convolutions, layer2's and its shortcut
    assert len(sizes) == 12  # four streams and the insides of eight blocks


@pytest.mark.skipif(
    not all(networks.weights_file(network).exists() for network in FASHION),
    reason="the trained networks are not beside the repository",
)
@pytest.mark.parametrize("network", FASHION)
def test_fashion_images_are_those_that_the_networks_were_trained_on(network: str) -> None:
    subjects = networks.NETWORKS[network]()
    one, label = subjects.test[0]
    batch, labels = subjects.test[0:3]
    assert torch.equal(batch[0], one)
    assert labels[0] == label
    assert one.shape == (3, 32, 32)
    assert one[0, 0, 0] == pytest.approx(-0.2860 / 0.3530)
    assert networks.accuracy(subjects.model, subjects.test, 250) > 0.9
