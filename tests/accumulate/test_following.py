"""Summing while the capture runs: the same statistics, a window on the disk, kills on either side."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamsparse.accumulate import AccumulateSettings, accumulate, follow, following, plan_accumulation
from streamsparse.accumulate.stage import begin_sums
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import MemoryLimitError, RunLockedError, StageMissingError, UsageError
from streamsparse.events import Event, Notice
from streamsparse.store import Run
from streamsparse.store.stream import StreamPlan
from streamsparse.store.window import batches_held, batches_in_window, discard, someone_waits
from tests.small import (
    SmallNet,
    build,
    captured_run,
    largest_difference,
    random_images,
    statistics_arrays,
)

SETTINGS = AccumulateSettings(folds=4, product_dtype="float64")
TOLERANCE = 1e-12
IMAGES, BATCH = 60, 5
WINDOW_BATCHES = 3


class SlowImages(Dataset[Tensor]):
    """Random images that take their time."""

    def __init__(self, seconds: float) -> None:
        self.images = random_images(IMAGES)
        self.seconds = seconds

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.seconds)
        return self.images[index]


def captured(path: Path, seconds: float = 0.0, window: bool = True, events: list[Event] | None = None) -> None:
    """A capture, in the calling process."""
    torch.set_num_threads(1)
    bytes_per_batch = captured_plan().raw_bytes * BATCH // IMAGES
    settings = CaptureSettings(
        "float32", batch_images=BATCH, window_bytes=WINDOW_BATCHES * bytes_per_batch if window else None
    )
    capture(
        build(SmallNet), SlowImages(seconds), path, settings=settings,
        on_event=(lambda _: None) if events is None else events.append,
    )  # fmt: skip


def captured_plan() -> StreamPlan:
    """Of the capture, from one that is kept in memory."""
    run = Run.at("memory://")
    capture(build(SmallNet), random_images(BATCH), run, settings=CaptureSettings("float32", batch_images=BATCH))
    (plan,) = run.plans("original")
    return StreamPlan(**{**plan.__dict__, "images": IMAGES})


def followed(path: Path) -> None:
    """Somebody who sums and discards, in the calling process."""
    torch.set_num_threads(1)
    following.POLL_SECONDS, following.SETTLED_SECONDS = 0.02, 0.05
    follow(path, settings=SETTINGS, discards=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(following, "SETTLED_SECONDS", 0.1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One after the other."""
    run = Run.at(tmp_path_factory.mktemp("expected") / "run")
    captured(Path(run.url), window=False)
    accumulate(run, settings=SETTINGS, executor="serial")
    return run


def assert_as_expected(run: Run, expected: Run) -> None:
    assert largest_difference(statistics_arrays(run), statistics_arrays(expected)) <= TOLERANCE


def test_follows_a_capture_within_a_window(tmp_path: Path, expected: Run) -> None:
    """The disk never holds more than the window; in the end it holds no activations."""
    run, events = Run.at(tmp_path / "run"), list[Event]()
    plan = captured_plan()
    allowed = batches_in_window(plan, WINDOW_BATCHES * plan.raw_bytes * BATCH // IMAGES)
    assert allowed == WINDOW_BATCHES
    capturing = threading.Thread(target=captured, args=(Path(run.url), 0.001, True, events))
    most, finished = 0, threading.Event()
    shard = "activations/original/shard-0000-of-0001"

    def watch() -> None:
        nonlocal most
        while not finished.is_set():
            most = max(most, batches_held(run.documents, shard))
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    for thread in (capturing, watching):
        thread.start()
    report = follow(run, settings=SETTINGS, discards=True)
    finished.set()
    for thread in (capturing, watching):
        thread.join(60)
    assert (report.images, report.layers) == (IMAGES, 3)
    assert 1 <= most <= allowed
    assert any(isinstance(event, Notice) and "window (3 batches)" in event.message for event in events)
    assert not someone_waits(run.documents, [shard])
    assert not [file for file in (tmp_path / "run/activations").rglob("c/*/*") if file.is_file()]
    assert not list((tmp_path / "run/partials").rglob("sums-*"))
    assert_as_expected(run, expected)
    assert accumulate(run, settings=SETTINGS).reused_layers == 3
    assert follow(run, settings=SETTINGS, discards=True).reused_layers == 3


def test_a_capture_that_has_finished_is_followed_too(tmp_path: Path, expected: Run) -> None:
    captured(tmp_path / "run", window=False)
    run = Run.at(tmp_path / "run")
    report = follow(run, settings=SETTINGS)
    assert report.patches == IMAGES * (9 + 1 + 1)
    assert_as_expected(run, expected)
    assert run.reader().require_complete()[0].discarded is False


def test_what_was_discarded_is_not_summed_in_another_way(tmp_path: Path) -> None:
    captured(tmp_path / "run", window=False)
    follow(tmp_path / "run", settings=SETTINGS, discards=True)
    with pytest.raises(StageMissingError, match="discarded") as raised:
        accumulate(tmp_path / "run", settings=AccumulateSettings(folds=3, product_dtype="float64"))
    assert "--follow --discard" in str(raised.value.remedy)


@pytest.fixture
def half_followed(tmp_path: Path) -> Run:
    """Killed after the first round: half of the batches are in lanes and discarded."""
    path = tmp_path / "run"
    captured(path, window=False)
    run = Run.at(path)
    reader = run.reader()
    half = reader.batches()[: IMAGES // BATCH // 2]
    hidden = [
        path / f"{batch.shard}/commits/batch-{batch.index:08d}.json" for batch in reader.batches()[len(half) :]
    ]
    contents = [file.read_bytes() for file in hidden]
    for file in hidden:
        file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "discard", lambda *arguments: (discard(*arguments), die()))
        with pytest.raises(KeyboardInterrupt):
            follow(run, settings=SETTINGS, discards=True)
    for file, content in zip(hidden, contents, strict=True):
        file.write_bytes(content)
    assert sum(batch.discarded for batch in run.reader().batches()) == len(half)
    return run


def die() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["follow", "accumulate"])
def test_goes_on_after_a_kill(half_followed: Run, expected: Run, way: str) -> None:
    if way == "follow":
        follow(half_followed, settings=SETTINGS, discards=True)
    else:
        accumulate(half_followed, settings=SETTINGS, executor="threads", workers=2)
    assert_as_expected(half_followed, expected)


def test_sums_of_what_is_gone_are_not_dropped(half_followed: Run, expected: Run) -> None:
    """Another memory limit would cut a layer in another way."""
    reader = half_followed.reader()
    plan = plan_accumulation(
        half_followed.url, reader, reader.batches(), SETTINGS, earlier={"fc1": [36, 1]}, single_lane=True
    )
    with pytest.raises(MemoryLimitError, match="discarded"):
        begin_sums(half_followed, plan, plan.layers)
    follow(half_followed, settings=SETTINGS)
    assert_as_expected(half_followed, expected)


def test_chunks_that_a_kill_left_are_deleted(half_followed: Run) -> None:
    """Killed between the mark and the deletion."""
    batch = next(batch for batch in half_followed.reader().batches() if batch.discarded)
    mark = f"{batch.shard}/discarded/batch-{batch.index:08d}.json"
    chunk = f"{batch.shard}/fc1@0/input/c/{batch.index}/0"
    half_followed.documents.write(chunk, b"left")
    half_followed.documents.write_json(mark, {"batch": batch.index, "deleted": False})
    follow(half_followed, settings=SETTINGS, discards=True)
    assert not half_followed.documents.exists(chunk)
    assert (half_followed.documents.read_json(mark) or {})["deleted"] is True


def test_one_at_a_time(tmp_path: Path) -> None:
    run = captured_run(tmp_path)
    with run.lock("accumulate"), pytest.raises(RunLockedError):
        follow(run.url, settings=SETTINGS)
    with run.lock(), pytest.raises(RunLockedError):
        follow(run.url, settings=SETTINGS)


def test_there_must_be_something_to_follow(tmp_path: Path) -> None:
    capture(build(SmallNet), random_images(), tmp_path, settings=CaptureSettings(sink="statistics", folds=4))
    with pytest.raises(UsageError, match="nothing to follow"):
        follow(tmp_path, settings=SETTINGS)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["streamsparse.run", "torch.export", "tests.small", __name__])
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_kills_on_either_side(context: ForkServerContext, tmp_path: Path, expected: Run, seed: int) -> None:
    """Both sides are killed at random moments and started again until both have finished."""
    path, chosen = tmp_path / "run", random.Random(seed)
    jobs = {"capture": (captured, (path, 0.005)), "follow": (followed, (path,))}
    running = {}
    deadline = time.monotonic() + 100
    kills = 4
    done: set[str] = set()
    while len(done) < 2 and time.monotonic() < deadline:
        for name, (target, arguments) in jobs.items():
            if name not in running and name not in done:
                running[name] = context.Process(target=target, args=arguments)
                running[name].start()
        victim = chosen.choice(list(running))
        running[victim].join(chosen.uniform(0.2, 2.0) if kills else 1.0)
        if running[victim].is_alive() and kills:
            kills -= 1
            running[victim].kill()
            running[victim].join(20)
            del running[victim]
        for name in list(running):
            if running[name].exitcode is not None:
                assert running[name].exitcode == 0, name
                done.add(name)
                del running[name]
    assert done == set(jobs)
    run = Run.at(path)
    assert all(batch.discarded for batch in run.reader().require_complete())
    assert_as_expected(run, expected)
