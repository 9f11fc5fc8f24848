"""Captures that stop by themselves: where, why, and that the run is then a capture of exactly so many images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset

import streamsparse as ss
from pipelines.lenet import LeNet
from streamsparse.adaptive import look_schedule
from streamsparse.capture import CaptureSettings, summing
from streamsparse.convergence import Convergence, Judge, Request
from streamsparse.errors import DataError, RunMismatchError, UsageError
from streamsparse.events import Event, Notice
from streamsparse.intake.captured import read_captured
from streamsparse.store import Run
from streamsparse.store.partials import Partials
from tests.cli.invoking import invoke
from tests.small import ConcatNet, SmallNet, build, largest_difference, random_images, statistics_arrays

SETTINGS = CaptureSettings(sink="statistics", folds=4, batch_images=32, products="float64")
IMAGES = 1500
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def images() -> Tensor:
    return random_images(IMAGES)


def until_converged(run: Run | Path, data: object, tolerance: float = TOLERANCE, **options: Any) -> Convergence:
    kind = options.pop("kind", SmallNet)
    return ss.capture_until_converged(
        build(kind), data, run, tolerance=tolerance, settings=options.pop("settings", SETTINGS), **options
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, images: Tensor) -> tuple[Run, Convergence]:
    run = Run.at(tmp_path_factory.mktemp("runs") / "ended")
    return run, until_converged(run, images)


def test_it_ends_when_the_last_layer_has_converged(ended: tuple[Run, Convergence]) -> None:
    run, found = ended
    assert found.converged
    assert found.images < IMAGES
    assert found.images == max(layer.images or 0 for layer in found.layers)
    for layer in found.layers:
        before, last = layer.looks[-2:]
        assert last.images == layer.images
        assert max(before.gap, last.gap) <= TOLERANCE
        assert abs((last.held_out_error or 0) - (before.held_out_error or 0)) <= TOLERANCE
        assert (last.error_bar or 0) > 0
    assert run.manifest()["data"]["images"] == found.images
    assert run.manifest()["until_converged"]["images_at_most"] == IMAGES


def test_the_run_is_a_capture_of_so_many_images(
    tmp_path: Path, ended: tuple[Run, Convergence], images: Tensor
) -> None:
    """Statistics, plan and a refit in order, which draws the images anew."""
    run, found = ended
    plain = Run.at(tmp_path / "plain")
    ss.capture(build(SmallNet), images, plain, images=found.images, settings=SETTINGS)
    for one in (run, plain):
        assert ss.accumulate(one).images == found.images
    assert largest_difference(statistics_arrays(run), statistics_arrays(plain)) < 1e-12
    plans = [ss.solve(one, budget="params=0.5").plan for one in (run, plain)]
    assert plans[0].keep == plans[1].keep
    refitted = [ss.refit(one, images, model=build(SmallNet)) for one in (run, plain)]
    assert [e.held_out_error for e in refitted[0].layers] == pytest.approx(
        [e.held_out_error for e in refitted[1].layers], rel=1e-6
    )


def test_a_tighter_tolerance_needs_more_images(
    tmp_path: Path, ended: tuple[Run, Convergence], images: Tensor
) -> None:
    tight = until_converged(tmp_path / "tight", images, tolerance=0.002)
    assert tight.images > ended[1].images


def test_the_bound_ends_it_too(tmp_path: Path, images: Tensor) -> None:
    run = Run.at(tmp_path / "bound")
    found = until_converged(run, images, tolerance=1e-6, images=100)
    assert (found.converged, found.images) == (False, 100)
    assert any(layer.images is None for layer in found.layers)
    assert {look.images for layer in found.layers for look in layer.looks} <= {64, 100}
    again = until_converged(run, images, tolerance=1e-6, images=100)
    assert again == found
    assert ss.accumulate(run).images == 100


def test_again_it_tells_what_it_found(ended: tuple[Run, Convergence], images: Tensor) -> None:
    run, found = ended
    events: list[Event] = []
    assert until_converged(run, images, on_event=events.append) == found
    assert not [event for event in events if isinstance(event, Notice)]  # no look was taken
    requests: tuple[dict[str, Any], ...] = ({"tolerance": 0.01}, {"keep_fraction": 0.6}, {"images": 500})
    for request in requests:
        with pytest.raises(RunMismatchError, match="ended when it had converged"):
            until_converged(run, images, **request)


def test_overwrite_begins_anew(tmp_path: Path, images: Tensor) -> None:
    run = Run.at(tmp_path / "run")
    first = until_converged(run, images, tolerance=0.1)
    assert until_converged(run, images, tolerance=0.1, keep_fraction=0.7, overwrite=True) != first
    assert run.manifest()["until_converged"]["keep_fraction"] == 0.7


class FailingImages(TensorDataset):
    """Fails at one item, as a node does that loses its disk."""

    def __init__(self, images: Tensor, fails_at: int) -> None:
        super().__init__(images)
        self.left = fails_at

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return (self.tensors[0][index],)


@pytest.mark.parametrize("fails_at", [40, 70, 130, 200])
def test_resumes_to_the_same_end(
    tmp_path: Path,
    ended: tuple[Run, Convergence],
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
) -> None:
    monkeypatch.setattr(summing, "COMMIT_SECONDS", 0.0)
    run = Run.at(tmp_path / "run")
    with pytest.raises(DataError):
        until_converged(run, FailingImages(images, fails_at))
    found = until_converged(run, images)
    assert found.images == ended[1].images
    for ours, theirs in zip(found.layers, ended[1].layers, strict=True):
        assert (ours.layer, ours.images) == (theirs.layer, theirs.images)
        for look, other in zip(ours.looks, theirs.looks, strict=True):
            assert look.held_out_error == pytest.approx(other.held_out_error, rel=1e-9)
    ss.accumulate(run)
    ss.accumulate(ended[0])
    assert largest_difference(statistics_arrays(run), statistics_arrays(ended[0])) < 1e-12


def test_a_kill_at_the_very_end_loses_nothing(
    tmp_path: Path, ended: tuple[Run, Convergence], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the manifest that says how many images count and the sums over them."""
    run = Run.at(tmp_path / "run")

    def write(*_: object) -> None:
        raise OSError("the power is gone")

    monkeypatch.setattr(Partials, "write", write)
    with pytest.raises(OSError, match="power"):
        until_converged(run, images)
    monkeypatch.undo()
    assert run.manifest()["data"]["images"] == ended[1].images
    found = until_converged(run, images)
    assert found == ended[1]
    assert ss.accumulate(run).images == found.images


def test_layers_that_read_two_groups(tmp_path: Path) -> None:
    """The support of both is chosen before the layer is judged."""
    found = until_converged(tmp_path / "run", random_images(300), tolerance=0.05, kind=ConcatNet)
    kept = {layer.layer: (layer.kept, layer.inputs) for layer in found.layers}
    assert kept["mix"] == (4, 7)  # 2 of 3 and 2 of 4
    assert all(layer.images is not None for layer in found.layers) == found.converged


def looks_of(gaps: list[float], errors: list[float] | None = None) -> list[dict[str, Any]]:
    """Of every layer of SmallNet, at 64, 128, ... images."""
    errors = errors or [0.1] * len(gaps)
    return [
        {
            "layer": layer, "images": 64 * 2**number, "training_error": error - gap, "held_out_error": error,
            "error_bar": 0.0, "ridge": 1e-6,
        }
        for layer in ("conv2", "fc1", "fc2")
        for number, (gap, error) in enumerate(zip(gaps, errors, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gaps", "errors", "expected"),
    [
        ([0.03, 0.009, 0.008], [0.1, 0.1, 0.1], 256),  # two good looks in a row
        ([0.009, 0.008, 0.001], [0.1, 0.1, 0.1], 128),  # the first two
        ([0.009, 0.02, 0.008], [0.1, 0.1, 0.1], None),  # not in a row
        ([0.009, 0.008, 0.007], [0.2, 0.1, 0.095], 256),  # not stable at first
        ([0.009], [0.1], None),  # one look
    ],
)
def test_the_rule(
    ended: tuple[Run, Convergence], gaps: list[float], errors: list[float], expected: int | None
) -> None:
    judge = Judge(read_captured(ended[0]), Request(0.01, 0.5, 1000, 0, 4), looks_of(gaps, errors))
    found = judge.convergence(256)
    assert {layer.images for layer in found.layers} == {expected}
    assert found.converged == (expected is not None)


def test_looks_are_at_whole_batches_and_double() -> None:
    assert look_schedule(600, 32) == [64, 128, 256, 512, 600]
    assert look_schedule(1000, 48) == [96, 192, 384, 768, 1000]
    assert look_schedule(64, 64) == [64]
    assert look_schedule(20, 20) == [20]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"tolerance": 0.0}, "--until-converged"),
        ({"tolerance": float("nan")}, "--until-converged"),
        ({"keep_fraction": 0.0}, "--at"),
        ({"keep_fraction": 1.1}, "--at"),
        ({"settings": CaptureSettings()}, "--sink statistics"),
        ({"settings": CaptureSettings(sink="statistics", shards=2)}, "--shard"),
    ],
)
def test_refuses_what_cannot_be_asked(tmp_path: Path, options: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError, match=where):
        until_converged(tmp_path / "run", random_images(10), **options)
    assert not (tmp_path / "run").exists()


def test_by_command_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(LeNet().state_dict(), tmp_path / "lenet.safetensors")
    images = np.random.default_rng(0).standard_normal((160, 1, 28, 28), dtype=np.float32)
    np.savez(tmp_path / "images.npz", images=images, labels=np.zeros(160, dtype=np.int64))
    run, model = tmp_path / "run", ("--model", "pipelines.lenet:LeNet", "--weights", tmp_path / "lenet.safetensors")
    command: tuple[object, ...] = (
        "capture",
        run,
        *model,
        "--data",
        f"npz:{tmp_path / 'images.npz'}",
        "--until-converged",
        0.3,
    )
    refused = invoke(*command)
    assert (refused.exit_code, "--sink statistics" in refused.output) == (2, True)
    command = (*command, "--sink", "statistics", "--images", 150)
    planned = invoke(*command, "--dry-run")
    assert "Looks after 64, 128, 150 images" in planned.output
    assert json.loads(invoke(*command, "--dry-run", "--json").stdout.strip().splitlines()[-1])["batches"] == 3
    assert not run.exists()
    wrong = invoke(*command, "--at", "params=0.5")
    assert (wrong.exit_code, "keep=X" in wrong.output) == (2, True)
    found = json.loads(invoke(*command, "--json").stdout.strip().splitlines()[-1])["report"]
    assert [layer["layer"] for layer in found["layers"]] == ["conv1", "fc1", "fc2", "fc3"]
    fc1 = next(layer for layer in found["layers"] if layer["layer"] == "fc1")
    assert fc1["looks"][0]["held_out_error"] is None  # 51 images to fit, 200 columns
    assert (found["converged"], found["images"]) == (False, 150)
    shown = invoke(*command).stdout
    assert "the bound was reached" in shown
    assert "not yet" in shown
    assert "--until-converged 0.005" in invoke("capture", "--help").output
