"""Groups solved side by side: a step per group, which leaves its front in the run, whoever works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from streamsparse.errors import UsageError
from streamsparse.events import OnEvent, reporting
from streamsparse.executors import Executor, Report, Step, require_reachable
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.solve.fronts import GroupFront, SolveSettings, solve_groups
from streamsparse.solve.originals import Originals
from streamsparse.store import Run, layout
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGroup


@dataclass(frozen=True)
class FrontTask:
    """One group's front.

    Attributes:
        run_url: of the run with its statistics.
        group: name.
        settings: how it is found.
        source: identity of what is found.
    """

    run_url: str
    group: str
    settings: SolveSettings
    source: str


def solve_side_by_side(
    run: Run,
    captured: Captured,
    groups: Sequence[ChannelGroup],
    settings: SolveSettings,
    sources: Sequence[str],
    executor: Executor,
    on_event: OnEvent,
) -> Iterator[str]:
    """Solve the groups and commit their fronts; yields their names as they are done, the largest begun first.

    Raises:
        UsageError: threads, which cannot have BLAS threads of their own; a run in memory for other processes.
        ClusterError: workers or scheduler are gone; fronts that were found stay.
    """
    if executor.name == "threads":
        raise UsageError(
            "Groups are not solved in threads: their BLAS would share one number of threads.",
            expected="serial or processes, or a --scheduler",
            got="threads",
            where="--executor",
        )
    require_reachable(run.url, executor)
    work = _solve_there if executor.name == "dask" else partial(_solve_here, run)
    steps = [
        Step(group.name, work, FrontTask(run.url, group.name, settings, source))
        for group, source in zip(groups, sources, strict=True)
    ]
    if executor.workers > 1:
        effort = {group.name: _effort(captured, group) for group in groups}
        steps.sort(key=lambda step: -effort[step.key])
    with reporting("solve", len(steps), "groups", on_event) as advance:
        for step in executor.run(steps, advance):
            yield step.key


def commit_front(run: Run, key: str, source: str, front: GroupFront) -> None:
    """Leave a front in the run, to be found again by its source."""
    run.records.write(key, {**front.description(), "source": source}, front.arrays())


def _effort(captured: Captured, group: ChannelGroup) -> float:
    """In proportion to what factorizations of its Grams take."""
    return float(sum(captured.graph.layers[consumer.layer].columns ** 3 for consumer in group.consumers))


def _solve_there(task: FrontTask, report: Report) -> None:
    run = Run.at(task.run_url)
    _solve(run, _originals_of(task.run_url, run.manifest()["model"].get("weights_sha256")), task, report)


def _solve_here(run: Run, task: FrontTask, report: Report) -> None:
    _solve(run, Originals.of(run), task, report)


@lru_cache(maxsize=1)
def _originals_of(run_url: str, _weights_sha256: str | None) -> Originals:
    """A worker solves one group of a run after the other: it fetches the weights once."""
    return Originals.of(Run.at(run_url))


def _solve(run: Run, originals: Originals, task: FrontTask, report: Report) -> None:
    captured = read_captured(run)
    group = captured.graph.group(task.group)
    (front,) = solve_groups(captured.graph, [group], Statistics(run), task.settings, originals)
    commit_front(run, layout.front_key(task.group), task.source, front)
    report(1)
