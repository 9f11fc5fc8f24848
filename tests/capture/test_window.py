"""Room on the store: never more batches than the window, whatever commits while it is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamsparse.capture import CaptureSettings, capture, writing
from streamsparse.capture.writing import Window
from streamsparse.events import Event
from streamsparse.store import Run, layout
from streamsparse.store.stream import StreamPlan
from streamsparse.store.window import batches_held, someone_waits
from tests.small import SmallNet, build, random_images

BATCHES = 3
SHARD = layout.shard_prefix("original", 0, 1)


@pytest.fixture
def plan() -> StreamPlan:
    """Of a capture in batches of five images."""
    run = Run.at("memory://")
    capture(build(SmallNet), random_images(5), run, settings=CaptureSettings("float32", batch_images=5))
    return replace(run.plans("original")[0], images=60)


def a_window(run: Run, plan: StreamPlan, events: list[Event]) -> Window:
    return Window(run.documents, plan, BATCHES * plan.raw_bytes * 5 // 60, "capture", events.append)


def mark(run: Run, batch: int, *, discarded: bool = False) -> None:
    key = layout.discarded_key(SHARD, batch) if discarded else layout.commit_key(SHARD, batch)
    run.documents.write_json(key, {"batch": batch})


def test_a_commit_during_the_count_is_counted(plan: StreamPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer commits its last batch between the two halves of the count: there is no room then."""
    run, events, slept = Run.at("memory://"), list[Event](), list[float]()
    mark(run, 0)
    mark(run, 1)

    def on_the_way() -> int:
        if not slept:
            mark(run, 2)
        return 0

    def sleep(seconds: float) -> None:
        assert batches_held(run.documents, SHARD) == BATCHES
        assert someone_waits(run.documents, [SHARD])
        slept.append(seconds)
        mark(run, 0, discarded=True)

    monkeypatch.setattr(writing, "sleep", sleep)
    with a_window(run, plan, events) as window:
        window.wait_for_room(on_the_way)
    assert len(slept) == len(events) == 1
    assert batches_held(run.documents, SHARD) == BATCHES - 1
    assert not someone_waits(run.documents, [SHARD])


def test_batches_on_the_way_take_room(plan: StreamPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    run, events, left = Run.at("memory://"), list[Event](), [3, 3, 2]
    monkeypatch.setattr(writing, "sleep", lambda seconds: None)
    with a_window(run, plan, events) as window:
        window.wait_for_room(lambda: left.pop(0))
    assert not left


def test_room_without_end(plan: StreamPlan) -> None:
    run, events = Run.at("memory://"), list[Event]()
    for batch in range(12):
        mark(run, batch)
    with Window(run.documents, plan, None, "capture", events.append) as window:
        window.wait_for_room(lambda: 5)
    assert not events
