"""The sequential refit sums the inputs that stay alone: the same weights as from sums over all inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamsparse.capture import CaptureSettings
from streamsparse.sequential import refit
from streamsparse.solve import SolveSettings, solve
from streamsparse.store import Run
from streamsparse.store.solution import read_solution, read_weights
from streamsparse.store.statistics import Statistics
from streamsparse.types import LayerGeometry
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
