"""Sum batches as a running capture commits them, on this machine or on others.

    capture      writes 0 1 2 | 3 4 5 | waits      6 7 ...
    follow                sums 0 1 2 | 3 4 5       ...         every layer has one lane per block, which grows
    discard                     deletes 0 1 2 | 3 4 5 ...      what every lane of the run holds is no longer needed

A round takes all that is there and keeps its sums in the run, so rounds are few while the capture is fast: one
begins when enough has come to be worth it, when the capture waits for room, or when nothing comes any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter, sleep

from streamsparse.accumulate.plan import AccumulatePlan, AccumulateSettings, plan_accumulation
from streamsparse.accumulate.report import AccumulateReport
from streamsparse.accumulate.stage import (
    accumulate_stream,
    begin_sums,
    committed,
    earlier_cuts,
    lane_step,
    resources_of,
)
from streamsparse.errors import RunNotFoundError, StageMissingError, UsageError
from streamsparse.events import Notice, OnEvent, Reused, ignore, reporting
from streamsparse.executors import Executor, Report, open_executor, require_reachable
from streamsparse.kernels.shift_sums import shift_bytes
from streamsparse.store import Run
from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch, batch_markers
from streamsparse.store.timings import recorded
from streamsparse.store.window import discard, finish_discards, someone_waits

POLL_SECONDS = 0.5
SETTLED_SECONDS = 3.0
NOTICE_SECONDS = 60.0
WORTH = 4  # a round is worth it when so many times the bytes of its sums have come


@dataclass
class _Following:
    """What one call knows of the capture, and what it has shown of its progress."""

    run: Run
    settings: AccumulateSettings
    executor: Executor
    discards: bool
    on_event: OnEvent
    advance: Report = field(default=lambda _: None)
    summed: int = 0  # batches
    shown: int = 0  # images
    told_at: float = field(default_factory=monotonic)

    def wait(self, why: str) -> None:
        """For a moment; says so from time to time."""
        if monotonic() - self.told_at > NOTICE_SECONDS:
            self.on_event(Notice("accumulate", f"nothing new for {NOTICE_SECONDS:.0f} s: {why}"))
            self.told_at = monotonic()
        sleep(POLL_SECONDS)

    def show(self, images: int) -> None:
        """So many images are in all lanes."""
        if images > self.shown:
            self.advance(images - self.shown)
            self.shown = images


def follow(
    run: Run | str | Path,
    *,
    settings: AccumulateSettings | None = None,
    executor: str = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
    discards: bool = False,
    on_event: OnEvent = ignore,
) -> AccumulateReport:
    """Sum the batches of a capture as they are committed, until it has finished; then commit the statistics.

    The result is that of `accumulate` after the capture, to a relative 1e-12. A kill on either side is made good by
    typing the same command again.

    Args:
        run: a capture that runs, has finished, or will begin.
        settings, executor, scheduler, workers: see `accumulate`; "auto" is serial here.
        discards: delete activations as soon as the sums that hold them are kept.
        on_event: hears of progress.

    Raises:
        UsageError: the capture dumps nothing.
        RunLockedError: another process accumulates this run, or a later stage has begun.
        CorruptDataError, ClusterError, MemoryLimitError: see `accumulate`; what was summed is kept.
    """
    settings = settings or AccumulateSettings()
    run = run if isinstance(run, Run) else Run.at(run)
    kind = "serial" if executor == "auto" else executor
    limit = settings.memory_limit_bytes
    started = perf_counter()
    with open_executor(kind, scheduler=scheduler, workers=workers, memory_limit_bytes=limit) as opened:
        require_reachable(run.url, opened)
        following = _Following(run, settings, opened, discards, on_event)
        images = _wait_for_begin(following)
        with (
            run.lock(shared=True),
            run.lock("accumulate"),
            recorded(run, "accumulate", on_event) as on_event,
        ):
            with reporting("accumulate", images, "images", on_event) as following.advance:
                plan = _sum_all(following)
            final = accumulate_stream(run, plan, executor=opened, on_event=_quiet(on_event))
    return AccumulateReport(final.layers, final.reused_layers, plan.images, final.patches, perf_counter() - started)


def _quiet(on_event: OnEvent) -> OnEvent:
    """The last step reads nothing: only what it found finished is news."""
    return lambda event: on_event(event) if isinstance(event, Reused) else None


def _wait_for_begin(following: _Following) -> int:
    """Until the capture has written its plan; how many images it will have."""
    while True:
        try:
            manifest = following.run.manifest()
            if manifest["sink"] == "activations":
                following.run.reader()
                return int(manifest["data"]["images"])
        except (RunNotFoundError, StageMissingError):
            following.wait("the capture has not begun")
            continue
        raise UsageError(
            "There is nothing to follow: this capture sums what it sees and dumps nothing.",
            expected="a capture with --sink activations",
            got=f"--sink {manifest['sink']}",
            where=following.run.url,
            remedy="run `streamsparse accumulate` without --follow when the capture has finished",
        )


def _sum_all(following: _Following) -> AccumulatePlan:
    """Round after round until the capture has finished; the plan that turns the lanes into statistics."""
    run, settings = following.run, following.settings
    while True:
        reader, batches, complete = _wait_for_batches(following)
        resources, earlier = resources_of(following.executor, settings), earlier_cuts(run, reader, settings)
        plan = plan_accumulation(run.url, reader, batches, settings, resources, earlier=earlier, single_lane=True)
        _round(following, plan)
        following.summed, following.told_at = len(batches), monotonic()
        if following.discards:
            finish_discards(run, reader.plans, batches)
            discard(run, reader.plans, [batch for batch in batches if not batch.discarded])
        if complete:
            cuts = earlier_cuts(run, reader, settings)
            return plan_accumulation(run.url, reader, batches, settings, resources, earlier=cuts)


def _round(following: _Following, plan: AccumulatePlan) -> None:
    """Bring every lane up to the plan's batches."""
    todo = [layer for layer in plan.layers if not committed(following.run, plan, layer)]
    begin_sums(following.run, plan, todo, drafts=False)
    steps = [lane_step(following.run, task, following.executor) for layer in todo for task in layer.tasks]
    done = 0

    def count(amount: int) -> None:
        nonlocal done
        done += amount
        following.show(done // len(steps))

    for _ in following.executor.run(steps, count):
        pass
    following.show(plan.images)


def _wait_for_batches(following: _Following) -> tuple[ActivationReader, list[Batch], bool]:
    """Until a round is worth it: the batches that are there, and whether these are all."""
    run, seen, changed_at = following.run, -1, monotonic()
    while True:
        reader = run.reader()
        there = sum(len(batch_markers(run.documents, shard)) for shard in reader.plans)
        if there != seen:
            seen, changed_at = there, monotonic()
        batches = reader.batches() if _worth_it(following, reader, there, monotonic() - changed_at) else []
        complete = bool(batches) and reader.all_committed(len(batches))
        enough = sum(batch.images for batch in batches) >= following.settings.folds
        if complete or (enough and len(batches) > following.summed):
            return reader, batches, complete
        following.wait("the capture goes on slowly, or has stopped; typed again, it resumes")


def _worth_it(following: _Following, reader: ActivationReader, there: int, settled_seconds: float) -> bool:
    """Enough has come, nothing more comes, or the capture waits."""
    plan = reader.example_plan
    new_bytes = (there - following.summed) * plan.raw_bytes * plan.batch_images / max(1, plan.images)
    sums = sum(shift_bytes(layer.geometry) for layer in plan.layers) * following.settings.folds
    if new_bytes >= WORTH * sums or settled_seconds >= SETTLED_SECONDS:
        return True
    return reader.all_committed(there) or someone_waits(following.run.documents, reader.plans)
