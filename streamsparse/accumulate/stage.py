"""From a captured stream to committed statistics, layer by layer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter

from streamsparse.accumulate.executors import SerialExecutor, open_executor
from streamsparse.accumulate.plan import AccumulatePlan, AccumulateSettings, LayerPlan, plan_accumulation
from streamsparse.accumulate.reduction import Executor, Reduction
from streamsparse.accumulate.report import AccumulateReport
from streamsparse.accumulate.shards import merge_shards
from streamsparse.accumulate.task import sum_batches, sum_from
from streamsparse.errors import UsageError
from streamsparse.events import OnEvent, Reused, ignore, reporting
from streamsparse.kernels.folds import merge_folds
from streamsparse.store import Run, layout
from streamsparse.store.statistics import Statistics

PROCESSES_FROM_BYTES = 2 * 2**30


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
            processes for more than `PROCESSES_FROM_BYTES` on disk.
        scheduler: address of a Dask scheduler; its workers must see the run under the same path.
        workers: local threads or processes; None for one per core.

    Raises:
        StageMissingError: the capture has not finished.
        MemoryLimitError, ClusterError, CorruptDataError: see `accumulate_stream`.
    """
    settings = settings or AccumulateSettings()
    run = run if isinstance(run, Run) else Run.at(run)
    sink = run.manifest()["sink"]
    with run.lock():
        if sink == "statistics":
            return merge_shards(run, layout.ORIGINAL_STREAM, on_event)
        reader = run.reader()
        plan = plan_accumulation(run.url, reader, reader.require_complete(), settings)
        kind = choose_executor(executor, run, plan)
        limit = settings.memory_limit_bytes
        with open_executor(kind, scheduler=scheduler, workers=workers, memory_limit_bytes=limit) as opened:
            return accumulate_stream(run, plan, executor=opened, on_event=on_event)


def choose_executor(kind: str, run: Run, plan: AccumulatePlan) -> str:
    """Resolve "auto" by the bytes there are to read."""
    if kind != "auto":
        return kind
    read_bytes = sum(layer.read_bytes for layer in plan.layers)
    return "processes" if read_bytes > PROCESSES_FROM_BYTES and run.directory is not None else "serial"


def accumulate_stream(
    run: Run, plan: AccumulatePlan, *, executor: Executor | None = None, on_event: OnEvent = ignore
) -> AccumulateReport:
    """Sum every layer of the plan and commit it; layers committed from the same batches are kept.

    Raises:
        CorruptDataError, NonFiniteError: damaged or unusable activations; finished layers stay committed.
        ClusterError: workers or scheduler are gone; finished layers stay committed.
        UsageError: a run in memory on an executor of other processes.
    """
    executor = executor or SerialExecutor()
    if run.url == "memory://" and executor.name == "dask":
        raise UsageError(
            "A run in memory cannot be read by other processes.",
            expected="the serial or threads executor, or a RUN on disk",
            got=executor.name,
        )
    started = perf_counter()
    stage = "accumulate" if plan.stream == layout.ORIGINAL_STREAM else f"accumulate {plan.stream}"
    statistics = Statistics(run, plan.stream)
    todo = {layer.layer.geometry.layer: layer for layer in plan.layers if not _committed(statistics, layer)}
    reused = len(plan.layers) - len(todo)
    if reused:
        on_event(Reused(stage, f"{reused} of {len(plan.layers)} layers"))
    work = sum_batches if executor.name == "dask" else partial(sum_from, run)
    reductions = [Reduction(name, layer.tasks, work, merge_folds) for name, layer in todo.items()]
    with reporting(stage, sum(len(layer.tasks) for layer in todo.values()), "tasks", on_event) as advance:
        for name, sums in executor.run(reductions, lambda _: advance(1)):
            description = {"source": todo[name].source, "images": plan.images, "stream": plan.stream}
            statistics.write(todo[name].layer.geometry, sums, description)
    patches = sum(layer.layer.geometry.patches_per_image * plan.images for layer in todo.values())
    return AccumulateReport(len(todo), reused, plan.images, patches, perf_counter() - started)


def _committed(statistics: Statistics, layer: LayerPlan) -> bool:
    found = statistics.description(layer.layer.geometry.layer)
    return found is not None and found.get("source") == layer.source
