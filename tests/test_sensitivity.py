"""Sensitivities: the same divergence as a network that is really cut, resumable, on images that nobody has seen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import streamsparse.sensitivity as module
from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import (
    CorruptDataError,
    DataError,
    ModelError,
    RunMismatchError,
    StageMissingError,
    UsageError,
)
from streamsparse.events import Event, Notice, Reused
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.divergence import output_loss
from streamsparse.network import prune
from streamsparse.network.refitting import with_weights
from streamsparse.sensitivity import (
    affordable_images,
    measure_sensitivities,
    measuring_images,
    passes_of,
    read_sensitivities,
)
from streamsparse.solve import GroupFront, SolveSettings, find_fronts, kept_inputs
from streamsparse.solve.losses import counts_at, predicted_losses
from streamsparse.solve.originals import Originals
from streamsparse.solve.supports import LayerRefits
from streamsparse.store import Run, layout
from streamsparse.store.sensitivities import sensitivity_request
from streamsparse.store.statistics import Statistics
from streamsparse.types import Sensitivity
from streamsparse.verification import verify_run
from tests.small import ConcatNet, SmallNet, TwiceNet, build, random_images

QUICK = SolveSettings("elimination")
LEVELS = (0.01, 0.05, 0.2, 0.5)
IMAGES = random_images(64)


class Heatmap(nn.Module):
    """Returns maps, not logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv2(torch.relu(self.conv1(images)))
        return maps


def solved_run(path: Path, kind: type[nn.Module], images: int = 40) -> Run:
    """A run with fronts over `images` of IMAGES."""
    run = Run.at(path)
    capture(build(kind), IMAGES, run, images=images, settings=CaptureSettings("float32", batch_images=10))
    accumulate(run, settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial")
    find_fronts(run, read_captured(run), QUICK)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sensitivity") / "run"
    solved_run(path, SmallNet)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    shutil.copytree(finished, tmp_path / "run")
    return Run.at(tmp_path / "run")


def fronts_of(run: Run) -> dict[str, GroupFront]:
    return find_fronts(run, read_captured(run), QUICK)


def measure(run: Run, kind: type[nn.Module] = SmallNet, **options: Any) -> dict[str, Sensitivity]:
    settings: dict[str, Any] = {"images": 24, "levels": LEVELS, "batch_images": 10, **options}
    return measure_sensitivities(run, settings.pop("data", IMAGES), model=build(kind), **settings)


def losses_by_surgery(run: Run, kind: type[nn.Module], group: str, counts: tuple[int, ...]) -> list[float]:
    """Cut the channels out for good, run both networks over the whole images, and compare by the definition."""
    captured, model = read_captured(run), build(kind)
    front, statistics, originals = fronts_of(run)[group], Statistics(run), Originals.of(run)
    about = captured.manifest["data"]
    order = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(about["seed"]))
    images = IMAGES[order[about["images"] :]][:24]
    losses = []
    for count in counts:
        keep = {group: front.front.supports[count].tolist()}
        inputs = kept_inputs(captured.graph, keep)
        consumers = {one.layer: captured.graph.layers[one.layer] for one in captured.graph.group(group).consumers}
        weights = {
            layer: LayerRefits.of(geometry, statistics[layer], originals.weight(geometry)).at(inputs[layer])
            for layer, geometry in consumers.items()
        }
        smaller = prune(with_weights(model, weights), captured.graph, keep)
        assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            wanted, given = (net(images).double() for net in (model, smaller))
        p, q = wanted.softmax(1), given.softmax(1)
        losses.append(float((p * (p / q).log()).sum(1).mean()))
    return losses


@pytest.mark.parametrize("kind", [SmallNet, ConcatNet, TwiceNet])
def test_the_losses_are_those_of_a_really_cut_network(tmp_path: Path, kind: type[nn.Module]) -> None:
    run = solved_run(tmp_path / "run", kind)
    found = measure(run, kind)
    assert set(found) == set(fronts_of(run))
    for group, sensitivity in found.items():
        assert sensitivity.counts == counts_at(fronts_of(run)[group].held_out, LEVELS)
        expected = losses_by_surgery(run, kind, group, sensitivity.counts)
        np.testing.assert_allclose(sensitivity.losses, expected, rtol=1e-4, atol=1e-9)
    assert max(max(one.losses) for one in found.values()) > 1e-6


def test_nothing_is_measured_twice_and_a_front_that_changes_is(run: Run) -> None:
    first = measure(run)
    assert read_sensitivities(run, fronts_of(run)) == first
    events: list[Event] = []
    assert measure(run, on_event=events.append) == first
    assert Reused("sensitivity", "3 of 3 groups") in events
    fronts = fronts_of(run)
    moved = {**fronts, "fc1": replace(fronts["fc1"], held_out=fronts["fc1"].held_out * 2)}
    assert set(read_sensitivities(run, moved) or {}) == {"conv1", "conv2"}


def test_another_request_makes_the_earlier_void(run: Run) -> None:
    first = measure(run)
    second = measure(run, levels=(0.3,))
    assert read_sensitivities(run, fronts_of(run)) == second != first


def test_a_kill_loses_one_group(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    calls: list[Any] = []

    def dying(*batches: Any) -> float:
        calls.append(batches)
        if len(calls) == len(expected["conv1"].counts) + 1:
            raise Killed
        return output_loss(*batches)

    other = Run.at(str(run.directory) + "-whole")
    shutil.copytree(str(run.directory), str(other.directory))
    expected = measure(other)
    monkeypatch.setattr(module, "output_loss", dying)
    with pytest.raises(Killed):
        measure(run)
    partial = read_sensitivities(run, fronts_of(run))
    assert partial == {"conv1": expected["conv1"]}
    with pytest.raises(StageMissingError, match="conv2, fc1"):
        predicted_losses(fronts_of(run), partial)
    monkeypatch.undo()
    events: list[Event] = []
    assert measure(run, on_event=events.append) == expected
    assert Reused("sensitivity", "1 of 3 groups") in events


def test_the_images_are_none_of_the_calibration_sample(run: Run) -> None:
    captured = read_captured(run)
    events: list[Event] = []
    measure(run, on_event=events.append)
    assert not [event for event in events if isinstance(event, Notice)]
    chosen, unseen = measuring_images(run, captured, IMAGES, 24)
    sample = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:40].tolist()
    assert unseen
    assert len(chosen.indices) == 24
    assert set(chosen.indices).isdisjoint(sample)
    assert json.loads(run.documents.read(layout.SENSITIVITIES) or b"")["unseen"] is True


def test_too_few_unseen_images_are_noticed(run: Run) -> None:
    events: list[Event] = []
    measure(run, images=30, on_event=events.append)
    assert [
        event for event in events if isinstance(event, Notice) and "30 of the calibration sample" in event.message
    ]
    request = json.loads(run.documents.read(layout.SENSITIVITIES) or b"")
    assert (request["unseen"], request["images"]) == (False, 30)
    measure(run, images=1000)
    assert json.loads(run.documents.read(layout.SENSITIVITIES) or b"")["images"] == 40


def test_outputs_that_are_no_logits_are_compared_by_their_variance(tmp_path: Path) -> None:
    run = solved_run(tmp_path / "run", Heatmap)
    found = measure(run, Heatmap, levels=(0.05, 0.5))["conv1"]
    assert json.loads(run.documents.read(layout.SENSITIVITIES) or b"")["measure"] == "squared difference"
    # The consumer is the last layer, so the loss is its own relative error, on other images than the folds'.
    held_out = fronts_of(run)["conv1"].held_out[list(found.counts)]
    np.testing.assert_allclose(found.losses, held_out, rtol=0.5)
    with pytest.raises(ModelError, match="by kl"):
        measure(run, Heatmap, by="fisher")


def test_fisher_agrees_where_little_is_cut_and_is_all_there(run: Run) -> None:
    levels = (0.001, 0.01, 0.1)
    measured, predicted = measure(run, levels=levels), measure(run, levels=levels, by="fisher")
    assert read_sensitivities(run, fronts_of(run)) == predicted
    for name, one in predicted.items():
        assert one.counts == measured[name].counts
        np.testing.assert_allclose(one.losses[-1], measured[name].losses[-1], rtol=0.3)
    losses = predicted_losses(fronts_of(run), predicted)
    assert all((np.diff(loss) <= 0).all() and loss[-1] == 0 for loss in losses.values())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"images": 0}, UsageError),
        ({"levels": ()}, UsageError),
        ({"levels": (0.1, 0.1)}, UsageError),
        ({"levels": (0.1, 1.5)}, UsageError),
        ({"by": "magic"}, UsageError),
        ({"data": random_images(64, seed=5)}, RunMismatchError),
        ({"data": IMAGES[:50]}, RunMismatchError),
        ({"data": 3}, DataError),
        ({"kind": TwiceNet}, RunMismatchError),
    ],
)
def test_a_refused_request_changes_nothing(run: Run, options: dict[str, Any], error: type[Exception]) -> None:
    measure(run)
    before = run.documents.read(layout.SENSITIVITIES)
    with pytest.raises(error):
        measure(run, **options)
    assert run.documents.read(layout.SENSITIVITIES) == before


def test_without_fronts_there_is_nothing_to_cut(run: Run) -> None:
    run.documents.delete(layout.front_key("conv2"))
    with pytest.raises(StageMissingError, match="conv2"):
        measure(run)


@pytest.mark.parametrize("content", ["{", "[]", "{}", None, '{"counts": [1]}'])
def test_verification_names_a_damaged_document(run: Run, content: str | None) -> None:
    measure(run)
    assert not verify_run(run)
    key = layout.sensitivity_key("conv2")
    document = json.loads(run.documents.read(key) or b"")
    run.documents.write(key, (content or json.dumps({**document, "counts": [99], "losses": [1.0]})).encode())
    assert [(problem.part, problem.key) for problem in verify_run(run) if key in problem.key] == [
        ("sensitivities", key if content is not None else f"{key}: conv2")
    ]


@pytest.mark.parametrize("damage", [{"counts": "x"}, {"losses": [0.1] * 9}, {"group": "other"}])
def test_a_damaged_document_is_refused(run: Run, damage: dict[str, Any]) -> None:
    measure(run)
    key = layout.sensitivity_key("conv2")
    document = json.loads(run.documents.read(key) or b"")
    run.documents.write(key, json.dumps({**document, **damage}).encode())
    with pytest.raises(CorruptDataError, match="sensitivity"):
        read_sensitivities(run, fronts_of(run))


def test_as_many_images_as_cost_little(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    captured, fronts = read_captured(run), fronts_of(run)

    def affordable(by: str = "kl", **about: Any) -> int:
        data = {**captured.manifest["data"], "images": 100, **about}
        return affordable_images(
            replace(captured, manifest={**captured.manifest, "data": data}), fronts, LEVELS, by
        )

    assert affordable(length=50_000) == 4096
    assert affordable(length=50_000, by="fisher") == 256
    assert affordable(length=100 + 1023) == 512  # no more than are unseen
    assert affordable(length=100 + 20) == 256  # too few: the sample's stand in
    assert affordable(length=50_000, shape=[3, 256, 256]) == 512  # half a gigabyte of images
    macs = passes_of(fronts, LEVELS, "kl") * captured.costs.macs({})
    monkeypatch.setattr("streamsparse.sensitivity._AFFORDABLE_MACS", 1500.0 * macs)
    assert affordable(length=50_000) == 1024
    monkeypatch.setattr("streamsparse.sensitivity.FEWEST_IMAGES", 8)
    measure(run, images=None)
    about = captured.manifest["data"]
    unseen = about["length"] - about["images"]
    assert (
        8 <= (sensitivity_request(run) or {})["images"] <= unseen < 2 * (sensitivity_request(run) or {})["images"]
    )
