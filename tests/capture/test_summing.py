"""Capture into statistics: the same sums as by way of the disk, resumable, in shards."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import streamsparse as ss
from streamsparse.capture import summing
from streamsparse.errors import DataError, ModelError, NonFiniteError, RunMismatchError, StageMissingError
from streamsparse.kernels.statistics import FIELDS
from streamsparse.store import Run
from streamsparse.store.partials import shards_with_partials
from streamsparse.store.statistics import Statistics

SINK = ss.CaptureSettings(sink="statistics", folds=3, products="float64", batch_images=7)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(8 * 4 * 4, 10), nn.ReLU(inplace=True), nn.Linear(10, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 10, 10, generator=torch.Generator().manual_seed(1))


RESPONSES = ("cross", "sum_y", "power")
ROUND_OFF = 1e-6  # of the model's float32 forward pass, which derived responses do not share


def assert_equal_statistics(first: Run, second: Run, tolerance: float, responses: float | None = None) -> None:
    ours, theirs = Statistics(first), Statistics(second)
    assert set(ours) == set(theirs) != set()
    for layer in ours:
        for one, other in zip(ours[layer], theirs[layer], strict=True):
            for name in FIELDS:
                found, wanted = getattr(one, name), getattr(other, name)
                allowed = responses if responses is not None and name in RESPONSES else tolerance
                assert (found - wanted).norm() <= allowed * wanted.norm(), (layer, name)


def test_equals_the_dumped_route(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    summed, dumped = Run.at(tmp_path / "summed"), Run.at(tmp_path / "dumped")
    ss.capture(model, images, summed, settings=SINK)
    ss.capture(model, images, dumped, settings=ss.CaptureSettings(dtype="float32"))
    assert not (tmp_path / "summed" / "activations").exists()
    ss.accumulate(summed)
    ss.accumulate(dumped, settings=ss.AccumulateSettings(folds=3, product_dtype="float64"))
    assert_equal_statistics(summed, dumped, 1e-12, responses=ROUND_OFF)


def hooking(model: nn.Module, layer: str, hook: Any) -> Any:
    """Register a forward hook once the channel graph is known, which would otherwise see it too."""
    return lambda _graph: model.get_submodule(layer).register_forward_hook(hook)


def test_altered_outputs_are_summed_as_they_are(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    """A hook scales what one layer gives; its responses must be those, as the dump has them."""
    summed, dumped = Run.at(tmp_path / "summed"), Run.at(tmp_path / "dumped")
    accept = hooking(model, "3", lambda _module, _inputs, output: output * 1.5)
    ss.capture(model, images, summed, settings=SINK, accept=accept)
    unhooked = copy.deepcopy(model)
    unhooked.get_submodule("3")._forward_hooks.clear()
    accept = hooking(unhooked, "3", lambda _module, _inputs, output: output * 1.5)
    ss.capture(unhooked, images, dumped, settings=ss.CaptureSettings(dtype="float32"), accept=accept)
    ss.accumulate(summed)
    ss.accumulate(dumped, settings=ss.AccumulateSettings(folds=3, product_dtype="float64"))
    assert "3" in Statistics(summed)
    assert_equal_statistics(summed, dumped, 1e-12, responses=ROUND_OFF)


def test_outputs_that_change_later_stop_the_capture(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    """A layer that behaves on the first images and not on the others is never summed as if it did."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.where(inputs[0].amax((1, 2, 3), keepdim=True) > 100, 1.1, 1.0) * output

    images[_place(20)] *= 1000
    with pytest.raises(ModelError, match="'3' are not always its weights times its input"):
        ss.capture(model, images, tmp_path / "run", settings=SINK, accept=hooking(model, "3", hook))
    assert not shards_with_partials(Run.at(tmp_path / "run"), "original")


def _place(position: int) -> int:
    """Where in the data set the image of this position of the sample lies."""
    return int(torch.randperm(40, generator=torch.Generator().manual_seed(0))[position])


def test_outputs_that_overflow_are_named(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    """Finite inputs, infinite outputs, on an image that the probe does not see."""
    with torch.no_grad():
        model.get_parameter("3.weight").fill_(1e20)
    images *= 1e-3
    images[_place(20)] = 1e21
    with pytest.raises(NonFiniteError, match="layer '3' is not finite"):
        ss.capture(model, images, tmp_path / "run", settings=SINK)


def test_prune_by_this_route(model: nn.Module, images: Tensor) -> None:
    result = ss.prune(model, images, budget="params=0.5", capture_settings=SINK, stages=1)
    assert result.solution.plan.costs.parameters <= 0.5 * sum(p.numel() for p in model.parameters())
    assert result.model(images[:2]).shape == (2, 4)


def test_shards_add_up(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    whole, parts = Run.at(tmp_path / "whole"), Run.at(tmp_path / "parts")
    ss.capture(model, images, whole, settings=SINK)
    ss.accumulate(whole)
    for shard in range(3):
        settings = ss.CaptureSettings(
            sink="statistics", folds=3, products="float64", batch_images=7, shard=shard, shards=3
        )
        if shard == 2:
            with pytest.raises(StageMissingError, match="not finished"):
                ss.accumulate(parts)
        ss.capture(model, images, parts, settings=settings)
    ss.accumulate(parts)
    assert_equal_statistics(parts, whole, 1e-6)  # batches of other sizes round differently in the float32 forward


class FailingImages(TensorDataset):
    """Fails at one item, as a node does that loses its disk."""

    def __init__(self, images: Tensor, fails_at: int) -> None:
        super().__init__(images)
        self.left = fails_at

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


@pytest.fixture
def committing_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit after every batch, not once a minute."""
    monkeypatch.setattr(summing, "COMMIT_SECONDS", 0.0)


@pytest.mark.usefixtures("committing_always")
def test_resumes_where_it_was_interrupted(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    broken, undisturbed = Run.at(tmp_path / "broken"), Run.at(tmp_path / "undisturbed")
    with pytest.raises(DataError):
        ss.capture(model, FailingImages(images, 25), broken, settings=SINK)
    (partials,) = shards_with_partials(broken, "original")
    assert 0 < partials.batches() < partials.plan.batches
    report = ss.capture(model, TensorDataset(images), broken, settings=SINK)
    assert report.reused_images == 7 * partials.plan.batches - 7 * -(-report.images // 7)
    assert report.reused_images > 0
    ss.capture(model, TensorDataset(images), undisturbed, settings=SINK)
    ss.accumulate(broken)
    ss.accumulate(undisturbed)
    assert_equal_statistics(broken, undisturbed, 1e-12)
    assert ss.capture(model, TensorDataset(images), broken, settings=SINK).images == 0


def test_other_settings_do_not_join(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    run = Run.at(tmp_path / "run")
    ss.capture(model, images, run, settings=SINK)
    for settings in (
        ss.CaptureSettings(sink="statistics", folds=4, products="float64", batch_images=7),
        ss.CaptureSettings(sink="statistics", folds=3, products="float64", batch_images=8),
        ss.CaptureSettings(batch_images=7),
    ):
        with pytest.raises(RunMismatchError):
            ss.capture(model, images, run, settings=settings)


def test_values_that_are_not_finite_are_named(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    images[11] = float("nan")
    with pytest.raises(NonFiniteError, match="layer '3'"):
        ss.capture(model, images, tmp_path / "run", settings=SINK)
    assert not shards_with_partials(Run.at(tmp_path / "run"), "original")


def test_other_products_do_not_join(tmp_path: Path, model: nn.Module, images: Tensor) -> None:
    """Neither on resuming nor from another shard."""
    run = Run.at(tmp_path / "run")
    first, other = ({"shards": 2, "products": name} for name in ("float64", "float32"))
    ss.capture(model, images, run, settings=replace(SINK, shard=0, **first))
    with pytest.raises(RunMismatchError, match="other images or settings"):
        ss.capture(model, images, run, settings=replace(SINK, shard=0, **other))
    ss.capture(model, images, run, settings=replace(SINK, shard=1, **other))
    with pytest.raises(RunMismatchError, match="summed in different ways"):
        ss.accumulate(run)
    ss.capture(model, images, run, settings=replace(SINK, **first), overwrite=True)
    ss.capture(model, images, run, settings=replace(SINK, shard=1, **first))
    ss.accumulate(run)
    assert {(Statistics(run).description(layer) or {})["products"] for layer in Statistics(run)} == {"float64"}
