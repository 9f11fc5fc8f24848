"""Records of what stages took: written for work, left alone without, added up after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import CorruptDataError, StorageError
from streamsparse.events import Advanced, Event, Notice, Reused
from streamsparse.solve import SolveSettings, solve
from streamsparse.store import Run, layout, timings
from streamsparse.store.timings import StageRecord, recorded, stage_records
from streamsparse.verification import verify_run
from tests.small import SmallNet, build, captured_run, files_below, random_images, summed_run


def record(run: Run, stage: str) -> StageRecord | None:
    return {one.stage: one for one in stage_records(run)}.get(stage)


def work(run: Run, *events: Event, name: str | None = None) -> list[Event]:
    heard: list[Event] = []
    with recorded(run, "solve", heard.append, name=name) as on_event:
        for event in events:
            on_event(event)
    return heard


def test_work_is_recorded_and_passed_on(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    events: list[Event] = [Reused("solve", "one front"), Advanced("solve", 1), Notice("solve", "careful")]
    assert work(run, *events) == events
    found = record(run, "solve")
    assert found is not None
    assert 0 < found.seconds < 60
    assert 10 * 2**20 < found.peak_bytes < 2**40  # bytes, not pages and not KiB
    assert found.reused == ("one front",)
    assert found.finished is not None
    assert found.finished.endswith("+00:00")
    assert "cores" in found.machine
    assert "torch thread" in found.machine


def test_without_work_nothing_is_written(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    work(run, Reused("solve", "all"), Advanced("refit", 3), Advanced("solved", 1), Advanced("solve", 0))
    assert not list(tmp_path.iterdir())
    work(run, Advanced("solve again", 1))
    before = files_below(tmp_path)
    work(run, Reused("solve", "all"))
    assert files_below(tmp_path) == before


def test_seconds_of_calls_that_did_not_finish_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = Run.at(tmp_path), [0.0]
    monkeypatch.setattr(timings, "perf_counter", lambda: now[0])

    def interrupted() -> None:
        with recorded(run, "solve", lambda _: None) as on_event:
            on_event(Advanced("solve", 1))
            now[0] = 5.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    cut = record(run, "solve")
    assert cut is not None
    assert (cut.seconds, cut.finished) == (5.0, None)
    with recorded(run, "solve", lambda _: None):  # nothing was left to do
        now[0] = 7.0
    whole = record(run, "solve")
    assert whole is not None
    assert whole.seconds == 7.0
    assert whole.finished is not None
    with recorded(run, "solve", lambda _: None) as on_event:
        on_event(Advanced("solve", 1))
        now[0] = 8.0
    again = record(run, "solve")
    assert again is not None
    assert again.seconds == 1.0


def test_a_kill_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = Run.at(tmp_path), [0.0]
    monkeypatch.setattr(timings, "perf_counter", lambda: now[0])
    with recorded(run, "solve", lambda _: None) as on_event:
        on_event(Advanced("solve", 1))
        assert record(run, "solve") is None
        now[0] = timings.UNFINISHED_SECONDS + 1
        on_event(Advanced("solve", 1))  # what a kill now would leave
        left = record(run, "solve")
        assert left is not None
        assert (left.seconds, left.finished) == (now[0], None)
        now[0] += 3
    whole = record(run, "solve")
    assert whole is not None
    assert whole.seconds == now[0]


def test_a_store_that_refuses_fails_the_stage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        work(Run.at(tmp_path / "file"), Advanced("solve", 1))


def test_what_failed_is_told_rather_than_the_record(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    run = Run.at(tmp_path / "file")

    def failing() -> None:
        with recorded(run, "solve", lambda _: None) as on_event:
            on_event(Advanced("solve", 1))
            raise ValueError("the stage itself")

    with pytest.raises(ValueError, match="the stage itself"):
        failing()


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"stage": "write"}'])
def test_damaged_records_are_named(tmp_path: Path, damage: str) -> None:
    run = summed_run(tmp_path)
    assert verify_run(run) == []
    key = layout.timing_key("accumulate")
    (tmp_path / key).write_text(damage)
    with pytest.raises(CorruptDataError, match=r"readable|record"):
        stage_records(run)
    assert [problem.key for problem in verify_run(run)] == [key]


def test_a_record_of_another_stage_is_damage(tmp_path: Path) -> None:
    run = summed_run(tmp_path)
    document = json.loads((tmp_path / layout.timing_key("capture")).read_text())
    (tmp_path / layout.timing_key("accumulate")).write_text(json.dumps(document))
    with pytest.raises(CorruptDataError, match="not readable"):
        stage_records(run)


def test_stages_record_themselves_once(tmp_path: Path) -> None:
    run = summed_run(tmp_path)
    solve(run, budget="params=0.5", settings=SolveSettings("elimination"))
    assert [one.stage for one in stage_records(run)] == ["accumulate", "capture", "solve"]
    assert all(one.seconds > 0 and one.finished for one in stage_records(run))
    before = files_below(tmp_path / "timings")
    settings = CaptureSettings("float32", batch_images=10)
    assert capture(build(SmallNet), random_images(40), run, settings=settings).images == 0
    reused = accumulate(run, settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial")
    assert reused.layers == 0
    solve(run, budget="params=0.5", settings=SolveSettings("elimination"))
    assert files_below(tmp_path / "timings") == before


def test_shards_have_records_of_their_own(tmp_path: Path) -> None:
    for shard in range(2):
        settings = CaptureSettings("float32", batch_images=10, shard=shard, shards=2)
        capture(build(SmallNet), random_images(40), tmp_path, settings=settings)
    assert [one.stage for one in stage_records(Run.at(tmp_path))] == ["capture 1 of 2", "capture 2 of 2"]


def test_a_capture_anew_forgets_what_was_before(tmp_path: Path) -> None:
    run = summed_run(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_text("{}")
    settings = CaptureSettings("float32", batch_images=10)
    capture(build(SmallNet), random_images(40), run, settings=settings, overwrite=True)
    assert [one.stage for one in stage_records(run)] == ["capture"]
    assert not (tmp_path / "report").exists()


def test_a_run_without_records_has_none(tmp_path: Path) -> None:
    run = captured_run(tmp_path)
    run.documents.delete(layout.TIMINGS)
    assert stage_records(run) == ()
