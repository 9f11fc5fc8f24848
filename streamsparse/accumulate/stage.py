"""From a captured stream to committed statistics, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import psutil

from streamsparse.accumulate.memory import Resources
from streamsparse.accumulate.plan import (
    AccumulatePlan,
    AccumulateSettings,
    LaneTask,
    LayerPlan,
    plan_accumulation,
    sums_digest,
)
from streamsparse.accumulate.report import AccumulateReport
from streamsparse.accumulate.shards import merge_shards, merged_already
from streamsparse.accumulate.task import FinishTask, draft_of, finish_lanes, sum_lane
from streamsparse.errors import MemoryLimitError
from streamsparse.events import OnEvent, Reused, ignore, reporting
from streamsparse.executors import Executor, Report, SerialExecutor, Step, open_executor, require_reachable
from streamsparse.store import Run, layout
from streamsparse.store.activations import ActivationReader
from streamsparse.store.statistics import Statistics
from streamsparse.store.timings import recorded

PROCESSES_FROM_BYTES = 2 * 2**30
_SHARE_OF_MACHINE = 0.8


def accumulate(
    run: Run | str | Path,
    *,
    settings: AccumulateSettings | None = None,
    executor: str = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> AccumulateReport:
    """Reduce a complete capture to statistics.

    Args:
        run: with a finished capture.
        settings: folds, dtype of products, memory limit.
        executor: "serial", "threads", "processes" (a local Dask cluster), or "auto": serial for small captures,
            processes for more than `PROCESSES_FROM_BYTES` to read.
        scheduler: address of a Dask scheduler; its workers must see the run under the same path or URL.
        workers: local threads or processes; None for one per core.

    Raises:
        StageMissingError: the capture has not finished.
        MemoryLimitError, ClusterError, CorruptDataError: see `accumulate_stream`.
    """
    settings = settings or AccumulateSettings()
    run = run if isinstance(run, Run) else Run.at(run)
    sink = run.manifest()["sink"]
    with run.lock(), recorded(run, "accumulate", on_event) as on_event:
        if sink == "merged":
            return merged_already(run, on_event)
        if sink == "statistics":
            return merge_shards(run, layout.ORIGINAL_STREAM, on_event)
        with _planned(run, settings, executor, scheduler, workers) as (opened, plan):
            return accumulate_stream(run, plan, executor=opened, on_event=on_event)


def dry_run(
    run: Run | str | Path,
    *,
    settings: AccumulateSettings | None = None,
    executor: str = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
) -> tuple[str, AccumulatePlan]:
    """What `accumulate` would do: the executor's name and the plan; touches nothing.

    Local processes are started for a moment, and workers of a cluster asked, to see what they hold by themselves.

    Raises:
        StageMissingError, MemoryLimitError, ClusterError: see `accumulate`.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    with _planned(run, settings or AccumulateSettings(), executor, scheduler, workers) as (opened, plan):
        return opened.name, plan


@contextmanager
def _planned(
    run: Run, settings: AccumulateSettings, executor: str, scheduler: str | None, workers: int | None
) -> Iterator[tuple[Executor, AccumulatePlan]]:
    reader = run.reader()
    batches = reader.require_complete()
    kind = choose_executor(executor, run, sum(plan.raw_bytes for plan in reader.plans.values()))
    limit = settings.memory_limit_bytes
    with open_executor(kind, scheduler=scheduler, workers=workers, memory_limit_bytes=limit) as opened:
        require_reachable(run.url, opened)
        resources, earlier = resources_of(opened, settings), earlier_cuts(run, reader, settings)
        yield opened, plan_accumulation(run.url, reader, batches, settings, resources, earlier=earlier)


def choose_executor(kind: str, run: Run, raw_bytes: int) -> str:
    """Resolve "auto" by the bytes there are to read."""
    if kind != "auto":
        return kind
    return "processes" if raw_bytes > PROCESSES_FROM_BYTES and run.url != "memory://" else "serial"


def resources_of(executor: Executor, settings: AccumulateSettings) -> Resources:
    """The executor's workers; without any limit, most of this machine's memory."""
    limits = [limit for limit in (settings.memory_limit_bytes, executor.memory_limit_bytes()) if limit is not None]
    limit = min(limits) if limits else int(_SHARE_OF_MACHINE * psutil.virtual_memory().total)
    return Resources(
        executor.workers, executor.process_bytes(sum_lane.__module__), limit, executor.tasks_per_process
    )


def earlier_cuts(run: Run, reader: ActivationReader, settings: AccumulateSettings) -> dict[str, Sequence[int]]:
    """How an accumulation that was killed had cut the layers; none if there was none."""
    prefix = layout.sums_prefix(reader.stream, sums_digest(reader, settings))
    found = run.documents.read_json(f"{prefix}/{layout.PLAN}") or {}
    return dict(found.get("cuts", {}))


def accumulate_stream(
    run: Run, plan: AccumulatePlan, *, executor: Executor | None = None, on_event: OnEvent = ignore
) -> AccumulateReport:
    """Sum every layer of the plan and commit it; what an earlier call summed of the same batches is kept.

    Raises:
        CorruptDataError, NonFiniteError: damaged or unusable activations; finished layers stay committed.
        ClusterError: workers or scheduler are gone; finished layers and partial sums stay.
        UsageError: a run in memory on an executor of other processes.
    """
    executor = executor or SerialExecutor()
    require_reachable(run.url, executor)
    started = perf_counter()
    stage = stage_name(plan.stream)
    todo = [layer for layer in plan.layers if not committed(run, plan, layer)]
    reused = len(plan.layers) - len(todo)
    if reused:
        on_event(Reused(stage, f"{reused} of {len(plan.layers)} layers"))
    begin_sums(run, plan, todo)
    steps = [step for layer in todo for step in _steps(run, layer, executor)]
    if executor.workers > 1:
        costs = {layer.name: layer.cost for layer in todo}
        steps.sort(key=lambda step: -costs[_layer_of(step)])  # stable: a finish stays behind its lanes
    total = sum(task.images for layer in todo for task in layer.tasks)
    with reporting(stage, total, "layer images", on_event) as advance:
        run_steps(run, plan, todo, steps, executor, advance)
    run.documents.delete(plan.sums)
    patches = sum(layer.layer.geometry.patches_per_image * plan.images for layer in todo)
    return AccumulateReport(len(todo), reused, plan.images, patches, perf_counter() - started)


def stage_name(stream: str) -> str:
    """As progress shows it."""
    return "accumulate" if stream == layout.ORIGINAL_STREAM else f"accumulate {stream}"


def begin_sums(run: Run, plan: AccumulatePlan, layers: Sequence[LayerPlan], *, drafts: bool = True) -> None:
    """Note how layers are cut, drop partial sums that were cut in another way.

    With `drafts`, create the arrays of the statistics too.

    Lanes are cut by the list of batches, so several of them serve that list alone; a single one may grow.

    Raises:
        MemoryLimitError: sums of activations that are gone were cut for more memory.
    """
    if not layers:
        return
    key = f"{plan.sums}/{layout.PLAN}"
    found = run.documents.read_json(key) or {}
    earlier, cuts = found.get("cuts", {}), plan.cuts()
    for layer in layers:
        draft = draft_of(run, layer.tasks[0])
        before = list(earlier.get(layer.name, cuts[layer.name]))
        if before != cuts[layer.name] or (before[1] > 1 and found.get("source") != layer.source):
            _require_activations(layer, before)
            run.documents.delete(f"{plan.sums}/{layout.part(layer.name)}")
            draft.drop()
        if drafts:
            draft.create()
    run.documents.write_json(key, {"cuts": cuts, "source": layers[0].source})


def _require_activations(layer: LayerPlan, before: list[int]) -> None:
    """Partial sums may be dropped only while what is in them can be read again."""
    if any(batch.discarded for task in layer.tasks for batch in task.batches):
        raise MemoryLimitError(
            f"Partial sums of layer '{layer.name}' were cut for another memory limit, and activations in them are "
            "discarded.",
            expected=f"room for blocks of {before[0]} channels",
            got=f"blocks of {layer.cut.channels}",
            where=layer.name,
            remedy="repeat the command with the memory limit and number of workers that it began with",
        )


def run_steps(
    run: Run,
    plan: AccumulatePlan,
    layers: Sequence[LayerPlan],
    steps: Sequence[Step],
    executor: Executor,
    advance: Report,
) -> None:
    """Run the steps; a layer is committed as soon as its last one is done."""
    left, by_name = Counter(map(_layer_of, steps)), {layer.name: layer for layer in layers}
    for step in executor.run(steps, advance):
        name = _layer_of(step)
        left[name] -= 1
        if not left[name]:
            description = {
                "source": by_name[name].source,
                "images": plan.images,
                "stream": plan.stream,
                "products": plan.settings.product_dtype,
            }
            draft_of(run, by_name[name].tasks[0]).commit(description)
            run.documents.delete(f"{plan.sums}/{layout.part(name)}")


def _steps(run: Run, layer: LayerPlan, executor: Executor) -> list[Step]:
    """Lanes of every block, and what adds them."""
    found = []
    for block in layer.cut.blocks:
        tasks = tuple(task for task in layer.tasks if task.block == block)
        found += [lane_step(run, task, executor) for task in tasks]
        if not tasks[0].direct:
            found.append(finish_step(run, tasks, executor))
    return found


def lane_step(run: Run, task: LaneTask, executor: Executor) -> Step:
    """Bring one lane up to its batches."""
    work = _sum_lane if executor.name == "dask" else partial(sum_lane, run)
    return Step(task.key, work, task)


def finish_step(run: Run, tasks: tuple[LaneTask, ...], executor: Executor) -> Step:
    """Add the lanes of a block, after they are done."""
    work = _finish_lanes if executor.name == "dask" else partial(finish_lanes, run)
    lanes = tuple(task.key for task in tasks)
    return Step(f"{tasks[0].key}/finish", work, FinishTask(tasks), lanes)


def _sum_lane(task: LaneTask, report: Report) -> None:
    sum_lane(Run.at(task.run_url), task, report)


def _finish_lanes(finish: FinishTask, report: Report) -> None:
    finish_lanes(Run.at(finish.tasks[0].run_url), finish, report)


def _layer_of(step: Step) -> str:
    item: LaneTask | FinishTask = step.item
    task = item if isinstance(item, LaneTask) else item.tasks[0]
    return task.layer.geometry.layer


def committed(run: Run, plan: AccumulatePlan, layer: LayerPlan) -> bool:
    """Whether the layer's statistics of just these batches and settings are there."""
    found = Statistics(run, plan.stream).description(layer.name)
    return found is not None and found.get("source") == layer.source
