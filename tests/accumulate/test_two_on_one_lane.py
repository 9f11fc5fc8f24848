"""A worker that was given up for lost comes back: two work on one lane, and whatever they do, the sums are right.

Another worker strikes before every single access to the store that a task makes, in turn: it does its own task
there, to the end or up to some batch where it dies, or its writing of long ago arrives at last.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from streamsparse.accumulate import AccumulatePlan, AccumulateSettings, plan_accumulation
from streamsparse.accumulate import task as task_module
from streamsparse.accumulate.plan import LaneTask
from streamsparse.accumulate.stage import begin_sums
from streamsparse.accumulate.task import FinishTask, draft_of, finish_lanes, sum_lane
from streamsparse.capture import CaptureSettings, capture
from streamsparse.store import Run
from streamsparse.store.documents import Documents
from streamsparse.store.lanes import Included, Lane, batch_name
from streamsparse.store.records import Draft, Records
from tests.cluster_processes import fork_server
from tests.small import (
    SmallNet,
    batch_by_batch,
    build,
    captured_run,
    largest_difference,
    random_images,
    statistics_arrays,
)

DOCUMENTED = 1e-12
ACCESSES = (
    (Documents, "read_json"),
    (Documents, "write_json"),
    (Documents, "exists"),
    (Documents, "names"),
    (Documents, "delete"),
    (Records, "array"),
    (Draft, "put"),
)


class KilledError(Exception):
    """Instead of a kill, in this process."""


@contextmanager
def before_access(number: int, strike: Callable[[], None]) -> Iterator[list[int]]:
    """Strike once, before access `number`; yields a list of those that were made."""
    made: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ACCESSES:
            original = getattr(owner, name)

            def access(*arguments: Any, original: Callable[..., Any] = original, **options: Any) -> Any:
                made.append(len(made))
                if len(made) == number + 1:
                    strike()
                return original(*arguments, **options)

            patch.setattr(owner, name, access)
        yield made


@pytest.fixture(autouse=True)
def keep_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(task_module, "pieces", batch_by_batch)


@pytest.fixture(scope="module")
def captured() -> Run:
    """In memory, for speed: it is the order of accesses that matters."""
    run = Run.at("memory://")
    capture(build(SmallNet), random_images(12), run, settings=CaptureSettings("float32", batch_images=2))
    return run


@pytest.fixture
def plan(captured: Run) -> Iterator[AccumulatePlan]:
    yield begun(captured)
    captured.documents.delete("statistics")
    captured.documents.delete("partials")


def begun(run: Run) -> AccumulatePlan:
    """The last layer in two lanes of three batches each."""
    reader = run.reader()
    cuts = {"fc2": [12, 2]}
    plan = plan_accumulation(run.url, reader, reader.require_complete(), AccumulateSettings(3), earlier=cuts)
    begin_sums(run, plan, plan.layers)
    return plan


def lane_sums(run: Run, task: LaneTask) -> dict[str, np.ndarray]:
    folds, included = kept(run, task.key)
    assert list(included) == [batch_name(batch) for batch in task.batches]
    return {f"{fold} {name}": tensor.numpy() for fold, part in enumerate(folds) for name, tensor in part.items()}


def kept(run: Run, key: str) -> tuple[list[dict[str, Tensor]], Included]:
    """What a lane holds: sums by fold, and the batches in them."""
    snapshot = Lane(run, key).snapshot()
    assert snapshot is not None
    return snapshot.all_folds(), snapshot.included


def dying_after(batches: int) -> Callable[[int], None]:
    """A report that kills its task when so many batches are summed."""
    reports = count(1)

    def report(_: int) -> None:
        if next(reports) == batches:
            raise KilledError

    return report


def nobody(_: int) -> None:
    """Hears no reports."""


@pytest.mark.parametrize("batches", [99, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 3))])
def test_the_other_strikes_before_any_access(captured: Run, plan: AccumulatePlan, batches: int) -> None:
    """The other sums some of the batches (99: all) while this one holds its breath."""
    task = plan.layers[-1].tasks[0]
    sum_lane(captured, task, nobody)
    expected = lane_sums(captured, task)

    def other() -> None:
        with suppress(KilledError):
            sum_lane(captured, task, dying_after(batches))

    for number in count():
        captured.documents.delete(task.key)
        with before_access(number, other) as made:
            sum_lane(captured, task, nobody)
        found = lane_sums(captured, task)
        assert all(np.array_equal(found[key], expected[key]) for key in expected), number
        if len(made) <= number:
            break
    assert number > 20


def test_the_other_strikes_while_lanes_are_added(captured: Run, plan: AccumulatePlan) -> None:
    """It writes all sums anew, and its writings of long ago arrive as well."""
    tasks = plan.layers[-1].tasks
    old: dict[str, Any] = {}
    for task in tasks:
        with suppress(KilledError):
            sum_lane(captured, task, dying_after(2))
        old[task.key] = kept(captured, task.key)
        sum_lane(captured, task, nobody)
    whole = {task.key: kept(captured, task.key) for task in tasks}

    def other() -> None:
        for writings in (whole, old):
            for key, sums in writings.items():
                Lane(captured, key).write(*sums)

    finish = FinishTask(tasks)
    results = []
    for number in count():
        draft_of(captured, tasks[0]).drop()
        draft_of(captured, tasks[0]).create()
        with before_access(number, other) as made:
            finish_lanes(captured, finish, nobody)
        draft_of(captured, tasks[0]).commit({"source": tasks[0].source})
        results.append(statistics_arrays(captured))
        assert all(np.array_equal(results[-1][key], results[0][key]) for key in results[0]), number
        if len(made) <= number:
            break
    assert number > 10


def test_a_late_writing_undoes_nothing(captured: Run, plan: AccumulatePlan) -> None:
    task = plan.layers[-1].tasks[0]
    with suppress(KilledError):
        sum_lane(captured, task, dying_after(2))
    early = kept(captured, task.key)
    assert len(early[1]) == 1
    sum_lane(captured, task, nobody)
    expected = lane_sums(captured, task)
    Lane(captured, task.key).write(*early)
    found = lane_sums(captured, task)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def sum_slowly(task: LaneTask, seed: int, longest_seconds: float) -> None:
    """In a process of its own, with a pause after every batch."""
    chosen = random.Random(seed)
    task_module.KEEP_SECONDS = 0.0
    vars(task_module)["pieces"] = batch_by_batch
    sum_lane(Run.at(task.run_url), task, lambda _: time.sleep(chosen.uniform(0, longest_seconds)))


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_two_processes_at_the_same_time(tmp_path: Path, rounds: int) -> None:
    """Every other time one of them is killed."""
    context, captured = fork_server(), captured_run(tmp_path, images=12, batch=2)
    task = begun(captured).layers[-1].tasks[0]
    sum_lane(captured, task, nobody)
    expected = lane_sums(captured, task)
    for seed in range(rounds):
        captured.documents.delete(task.key)
        pair = [context.Process(target=sum_slowly, args=(task, 2 * seed + second, 0.02)) for second in range(2)]
        for process in pair:
            process.start()
        if seed % 2:
            pair[0].join(random.Random(seed).uniform(0, 0.3))
            pair[0].kill()
        for process in pair:
            process.join(60)
        assert pair[1].exitcode == 0
        assert pair[0].exitcode == 0 or seed % 2
        found = lane_sums(captured, task)
        assert largest_difference(found, expected) <= DOCUMENTED, seed
