"""The accumulate stage: plan, reuse, memory, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsparse.accumulate import AccumulateSettings, accumulate, costs, plan_accumulation
from streamsparse.accumulate import task as task_module
from streamsparse.accumulate.memory import LEAST_CHANNELS, Resources, cut_layer
from streamsparse.accumulate.stage import begin_sums, earlier_cuts
from streamsparse.accumulate.task import FinishTask, draft_of, finish_lanes, sum_lane
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import (
    CorruptDataError,
    MemoryLimitError,
    RunLockedError,
    RunNotFoundError,
    StageMissingError,
    UsageError,
)
from streamsparse.events import Event, Reused
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from tests.small import (
    SmallNet,
    batch_by_batch,
    build,
    captured_run,
    files_below,
    largest_difference,
    random_images,
    reference_folds,
    statistics_arrays,
    summed_run,
    sums_arrays,
)

SETTINGS = AccumulateSettings(folds=4, product_dtype="float64")


def test_the_statistics_are_those_of_the_stored_activations(tmp_path: Path) -> None:
    run = summed_run(tmp_path, images=25, batch=7)
    reader = run.reader()
    for name, layer in reader.layers.items():
        sides = {
            side: torch.from_numpy(
                np.concatenate([reader.read(batch, name, 0, side) for batch in reader.require_complete()])
            )
            for side in ("input", "output")
        }
        expected = reference_folds(layer.geometry, sides["input"], sides["output"], 4)
        assert largest_difference(sums_arrays(Statistics(run)[name]), sums_arrays(expected)) <= 1e-12


def test_finished_layers_are_kept_and_lost_ones_summed_again(tmp_path: Path) -> None:
    run = summed_run(tmp_path)
    before = statistics_arrays(run)
    run.documents.delete_key("statistics/original/fc1/record.json")
    assert set(Statistics(run)) == {"conv2", "fc2"}
    assert len(Statistics(run)) == 2
    events: list[Event] = []
    report = accumulate(run, settings=SETTINGS, executor="serial", on_event=events.append)
    assert (report.layers, report.reused_layers) == (1, 2)
    assert Reused("accumulate", "2 of 3 layers") in events
    after = statistics_arrays(run)
    assert all(np.array_equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    "settings", [AccumulateSettings(folds=3, product_dtype="float64"), AccumulateSettings(4, "float32")]
)
def test_other_settings_are_summed_again(tmp_path: Path, settings: AccumulateSettings) -> None:
    run = summed_run(tmp_path)
    report = accumulate(run, settings=settings, executor="serial")
    assert (report.layers, report.reused_layers) == (3, 0)
    assert len(Statistics(run)["fc1"]) == settings.folds


def test_a_capture_that_has_not_finished_is_refused(tmp_path: Path) -> None:
    run = captured_run(tmp_path)
    next(tmp_path.rglob("batch-00000002.json")).unlink()
    before = files_below(tmp_path)
    with pytest.raises(StageMissingError) as raised:
        accumulate(run, settings=SETTINGS)
    assert "capture" in str(raised.value.remedy)
    assert files_below(tmp_path) == before


def test_a_run_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        accumulate(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    run = captured_run(tmp_path)
    with run.lock(), pytest.raises(RunLockedError):
        accumulate(run.url, settings=SETTINGS)


def test_the_memory_limit_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    run = captured_run(tmp_path)
    with pytest.raises(MemoryLimitError) as raised:
        accumulate(run, settings=AccumulateSettings(4, memory_limit_bytes=1000))
    assert "1,000 bytes" in str(raised.value.expected)
    assert "projected" in str(raised.value.got)
    assert not (tmp_path / "statistics").exists()


def test_fewer_images_than_folds(tmp_path: Path) -> None:
    run = captured_run(tmp_path, images=3)
    with pytest.raises(UsageError, match="fewer images than folds"):
        accumulate(run, settings=SETTINGS)


@pytest.mark.parametrize("settings", [{"folds": 1}, {"product_dtype": "float16"}])
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        AccumulateSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 7, 100])
def test_tasks_cover_every_batch_once_in_order(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_WRITE_COST", 0)  # as if there were many more images
    run = captured_run(tmp_path, images=50, batch=2)
    reader = run.reader()
    batches = reader.require_complete()
    plan = plan_accumulation(run.url, reader, batches, SETTINGS, Resources(workers))
    for layer in plan.layers:
        assert [batch for task in layer.tasks for batch in task.batches] == batches
        assert all(task.batches for task in layer.tasks)
        assert all(task.direct == (len(layer.tasks) == 1) for task in layer.tasks)
    assert sum(len(layer.tasks) for layer in plan.layers) >= min(workers, len(batches))
    raw = sum(layer.read_bytes for layer in plan.layers)
    assert raw == sum(plan.raw_bytes for plan in reader.plans.values())


def test_layers_whose_sums_take_longer_to_write_than_to_sum_are_not_split(tmp_path: Path) -> None:
    reader = captured_run(tmp_path, images=50, batch=2).reader()
    plan = plan_accumulation("memory://", reader, reader.require_complete(), SETTINGS, Resources(7))
    tasks = {layer.name: len(layer.tasks) for layer in plan.layers}
    assert tasks["fc1"] == 1
    assert tasks["conv2"] > 1


def test_a_layer_is_cut_as_finely_as_its_memory_demands(tmp_path: Path) -> None:
    reader = captured_run(tmp_path).reader()
    layer = reader.layers["fc1"]
    cuts = [cut_layer(layer, reader.example_plan, 4, Resources())]
    assert len(cuts[0].blocks) == 1

    def cut_finer() -> None:
        while True:
            limit = cuts[-1].task_bytes - 1
            resources = Resources(limit_bytes=1000 + limit, process_bytes=1000)
            cuts.append(cut_layer(layer, reader.example_plan, 4, resources))
            assert cuts[-1].task_bytes <= limit

    with pytest.raises(MemoryLimitError) as raised:
        cut_finer()
    assert f"{1000 + cuts[-1].task_bytes:,} bytes projected" in str(raised.value.got)
    sizes = [cut.channels for cut in cuts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= LEAST_CHANNELS < sizes[0]


def test_a_killed_accumulation_is_gone_on_with_as_it_was_cut(tmp_path: Path) -> None:
    """Lanes and blocks stay as they were; other memory makes another cut, and what was summed of it starts anew."""
    run = captured_run(tmp_path, images=50, batch=5)
    reader = run.reader()
    batches = reader.require_complete()
    cuts = {"conv2": [3, 3], "fc1": [36, 2], "fc2": [12, 2]}
    plan = plan_accumulation(run.url, reader, batches, SETTINGS, earlier=cuts)
    layers = plan.layers
    begin_sums(run, plan, layers)
    for task in layers[0].tasks[:4]:
        sum_lane(run, task, lambda _: None)
    assert earlier_cuts(run, reader, SETTINGS) == cuts
    amounts: list[int] = []
    sum_lane(run, layers[0].tasks[0], amounts.append)
    assert amounts == [layers[0].tasks[0].images]  # nothing is read again
    report = accumulate(run, settings=SETTINGS, executor="serial")
    assert report.layers == 3
    expected = statistics_arrays(summed_run(tmp_path / "other", images=50, batch=5))
    assert largest_difference(statistics_arrays(run), expected) <= 1e-12
    assert not (tmp_path / plan.sums).exists()


def test_lanes_that_do_not_hold_every_batch_once_are_refused(tmp_path: Path) -> None:
    run = captured_run(tmp_path, images=50, batch=5)
    reader = run.reader()
    plan = plan_accumulation(run.url, reader, reader.require_complete(), SETTINGS, earlier={"fc1": [72, 2]})
    begin_sums(run, plan, plan.layers)
    first, second = plan.layers[1].tasks
    for task in (first, second):
        sum_lane(run, task, lambda _: None)
    finish_lanes(run, FinishTask((first, second)), lambda _: None)
    for changed in (replace(second, batches=second.batches[:-1]), replace(second, batches=first.batches)):
        draft_of(run, first).drop()
        draft_of(run, first).create()
        with pytest.raises(CorruptDataError, match="every batch once"):
            finish_lanes(run, FinishTask((first, changed)), lambda _: None)


def test_a_batch_that_was_captured_anew_is_not_added_to_old_sums(tmp_path: Path) -> None:
    run = captured_run(tmp_path, images=50, batch=5)
    reader = run.reader()
    plan = plan_accumulation(run.url, reader, reader.require_complete(), SETTINGS, earlier={"fc1": [72, 2]})
    begin_sums(run, plan, plan.layers)
    task = plan.layers[1].tasks[0]
    sum_lane(run, task, lambda _: None)
    other = (replace(task.batches[0], digest="0" * 64), *task.batches[1:])
    with pytest.raises(CorruptDataError, match="captured anew"):
        sum_lane(run, replace(task, batches=other), lambda _: None)


def test_long_tasks_keep_their_sums_as_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after some batches, the task goes on behind the last that was kept, and the sums are the same bits."""
    monkeypatch.setattr(task_module, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(task_module, "pieces", batch_by_batch)
    run = captured_run(tmp_path, images=50, batch=5)
    reader = run.reader()
    plan = plan_accumulation(run.url, reader, reader.require_complete(), SETTINGS)
    begin_sums(run, plan, plan.layers)
    task = plan.layers[0].tasks[0]
    done: list[int] = []

    def dying(amount: int) -> None:
        done.append(amount)
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sum_lane(run, task, dying)
    amounts: list[int] = []
    sum_lane(run, task, amounts.append)
    assert amounts == [15, *[5] * 7]
    accumulate(run, settings=SETTINGS, executor="serial")
    expected = statistics_arrays(summed_run(tmp_path / "other", images=50, batch=5))
    found = statistics_arrays(run)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_run_in_memory(tmp_path: Path) -> None:
    on_disk = summed_run(tmp_path)
    run = Run.at("memory://")
    capture(build(SmallNet), random_images(), run, settings=CaptureSettings("float32", batch_images=10))
    accumulate(run, settings=SETTINGS, executor="threads", workers=2)
    assert largest_difference(statistics_arrays(run), statistics_arrays(on_disk)) <= 1e-12
