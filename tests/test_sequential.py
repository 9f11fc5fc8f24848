"""The sequential refit sums the inputs that stay alone: the same weights as from sums over all inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamsparse.capture import CaptureSettings
from streamsparse.network import prune
from streamsparse.sequential import refit
from streamsparse.solve import SolveSettings, solve
from streamsparse.store import Run
from streamsparse.store.solution import read_solution, read_weights
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGraph, LayerGeometry
from streamsparse.verification import verify_run
from tests.small import ConcatNet, SmallNet, build, random_images, summed_run

SETTINGS = CaptureSettings("float32", batch_images=20)


class GroupedNet(nn.Module):
    """A grouped convolution between plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.plain = nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.plain(F.relu(self.grouped(F.relu(self.stem(images))))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def refitted(path: Path, kind: type[nn.Module]) -> Run:
    run = summed_run(path, kind)
    solve(run, budget="params=0.5", settings=SolveSettings("elimination"))
    refit(run, random_images(), model=build(kind), settings=SETTINGS)
    return run


def widths(run: Run) -> dict[str, tuple[int, int]]:
    """By layer of the further stages: input channels that were summed, and columns of the Gram."""
    found = {}
    for stream in run.documents.names("statistics"):
        for layer in Statistics(run, stream) if stream.startswith("refit-") else ():
            description = Statistics(run, stream).description(layer) or {}
            gram = Statistics(run, stream)[layer][0].gram
            found[layer] = (description["geometry"]["in_channels"], gram.shape[1])
    return found


@pytest.mark.parametrize("kind", [SmallNet, ConcatNet, GroupedNet])
def test_weights_are_those_of_sums_over_all_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]
) -> None:
    narrow = refitted(tmp_path / "narrow", kind)
    assert verify_run(narrow) == []

    def whole(geometry: LayerGeometry, _: int) -> LayerGeometry:
        return geometry

    monkeypatch.setattr("streamsparse.sequential.on_inputs", whole)
    wide = refitted(tmp_path / "wide", kind)
    solutions = [run.documents.read_json("solution/solution.json") or {} for run in (narrow, wide)]
    assert solutions[0]["plan"] == solutions[1]["plan"]
    columns = [{layer: width[1] for layer, width in widths(run).items()} for run in (narrow, wide)]
    assert columns[0].keys() == columns[1].keys()
    assert any(columns[0][layer] < columns[1][layer] for layer in columns[0])
    weights, expected = (read_weights(run, read_solution(run)) for run in (narrow, wide))
    for layer, (weight, bias) in expected.items():
        np.testing.assert_allclose(weights[layer][0], weight, rtol=1e-3, atol=1e-4 * np.abs(weight).max())
        assert (weights[layer][1] is None) == (bias is None)
        if bias is not None:
            np.testing.assert_allclose(weights[layer][1], bias, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]


class ResidualNet(nn.Module):
    """A stream that four layers consume, two of them behind others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 5, 3, padding=1)
        self.fourth = nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        stream = F.relu(self.stem(images))
        stream = F.relu(stream + self.norm(self.second(F.relu(self.first(stream)))))
        stream = F.relu(stream + self.fourth(F.relu(self.third(stream))))
        logits: Tensor = self.head(stream.mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("kind", "stages"), [(SmallNet, None), (GroupedNet, None), (ResidualNet, None), (ResidualNet, 2)]
)
def test_the_pruned_network_runs_as_small_as_it_already_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], stages: int | None
) -> None:
    """Channels that refitted layers multiply with 0 are not computed; the weights are as if they were."""
    sizes: list[int] = []

    def counted(model: nn.Module, graph: ChannelGraph, keep: dict[str, tuple[int, ...]]) -> nn.Module:
        smaller = prune(model, graph, keep)
        sizes.append(sum(parameter.numel() for parameter in smaller.parameters()))
        return smaller

    def whole(model: nn.Module, *_: object) -> nn.Module:
        return model

    found = []
    for number, pruned in enumerate((counted, whole)):
        monkeypatch.setattr("streamsparse.sequential.prune", pruned)
        run = summed_run(tmp_path / str(number), kind)
        solve(run, budget="params=0.5", settings=SolveSettings("elimination"))
        refit(run, random_images(), model=build(kind), stages=stages, settings=SETTINGS)
        found.append(read_weights(run, read_solution(run)))
    before = sum(parameter.numel() for parameter in build(kind).parameters())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < before
    for layer, (weight, bias) in found[1].items():
        np.testing.assert_allclose(found[0][layer][0], weight, rtol=1e-3, atol=1e-4 * np.abs(weight).max())
        if bias is not None:
            np.testing.assert_allclose(found[0][layer][1], bias, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]


def test_a_plan_that_keeps_other_inputs_sums_anew(tmp_path: Path) -> None:
    """The weights before may be the same: the stream's name tells the inputs, too."""
    run = refitted(tmp_path, SmallNet)
    before = set(run.documents.names("statistics"))
    solve(run, channels={"conv1": 6, "conv2": 8, "fc1": 5}, settings=SolveSettings("elimination"))
    refit(run, random_images(), model=build(SmallNet), settings=SETTINGS)
    first = set(run.documents.names("statistics"))
    solve(run, channels={"conv1": 6, "conv2": 8, "fc1": 4}, settings=SolveSettings("elimination"))
    refit(run, random_images(), model=build(SmallNet), settings=SETTINGS)
    last = set(run.documents.names("statistics"))
    assert before != first != last
    assert widths(run)["fc2"] == (4, 4)
    assert verify_run(run) == []
    assert torch.isfinite(torch.as_tensor(read_weights(run, read_solution(run))["fc2"][0])).all()
