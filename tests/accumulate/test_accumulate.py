"""The accumulate stage: plan, reuse, memory, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from streamsparse.accumulate import AccumulateSettings, accumulate, plan_accumulation
from streamsparse.accumulate import plan as planning
from streamsparse.accumulate.reduction import merge_tree
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import (
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

SETTINGS = AccumulateSettings(folds=4)


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


@pytest.mark.parametrize("settings", [AccumulateSettings(folds=3), AccumulateSettings(4, "float32")])
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


@pytest.mark.parametrize("task_bytes", [1, 10_000, 2**28])
def test_tasks_cover_every_batch_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_bytes: int
) -> None:
    monkeypatch.setattr(planning, "_TASK_BYTES", task_bytes)
    run = captured_run(tmp_path, images=50, batch=2)
    reader = run.reader()
    batches = reader.require_complete()
    plan = plan_accumulation(run.url, reader, batches, SETTINGS)
    for layer in plan.layers:
        assert [batch for task in layer.tasks for batch in task.batches] == batches
        assert all(task.batches for task in layer.tasks)
        assert len(layer.tasks) <= 16
    raw = sum(layer.read_bytes for layer in plan.layers)
    assert raw == sum(plan.raw_bytes for plan in reader.plans.values())


@pytest.mark.parametrize("count", range(1, 20))
def test_the_projection_counts_what_a_merge_tree_holds(count: int) -> None:
    """Leaves are evaluated depth first: at most one partial result per level waits for its partner."""
    held = most = 0

    def leaf(_: int) -> int:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return 1

    def merge(first: int, second: int) -> int:
        nonlocal held, most
        most = max(most, held + 1)
        held -= 1
        return first + second

    assert merge_tree(range(count), leaf, merge) == count
    assert most <= 2 + (count - 1).bit_length()


def test_a_run_in_memory(tmp_path: Path) -> None:
    on_disk = summed_run(tmp_path)
    run = Run.at("memory://")
    capture(build(SmallNet), random_images(), run, settings=CaptureSettings("float32", batch_images=10))
    accumulate(run, settings=SETTINGS, executor="threads", workers=2)
    assert largest_difference(statistics_arrays(run), statistics_arrays(on_disk)) <= 1e-12
