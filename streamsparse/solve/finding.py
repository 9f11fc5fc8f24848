"""The fronts of a run: found once for its statistics, committed group by group, and found again by their source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from streamsparse.events import Notice, OnEvent, Reused, ignore, reporting
from streamsparse.executors import Execution
from streamsparse.intake.captured import Captured
from streamsparse.network.observation import whole_groups
from streamsparse.solve.constrained import solve_constrained_group
from streamsparse.solve.constraints import Constraints, left_groups
from streamsparse.solve.fronts import GroupFront, SolveSettings
from streamsparse.solve.group_steps import commit_front, solve_side_by_side
from streamsparse.solve.originals import Originals
from streamsparse.solve.threads import one_blas_thread
from streamsparse.store import Run, layout
from streamsparse.store.statistics import Statistics
from streamsparse.store.timings import recorded
from streamsparse.types import ChannelGroup


@dataclass(frozen=True)
class RunFronts:
    """Fronts of the groups that do not stay whole.

    Attributes:
        plain: without lists, of every such group: sensitivities belong to them.
        listed: with their positions to keep and to drop, of the groups that have such lists.
    """

    plain: Mapping[str, GroupFront]
    listed: Mapping[str, GroupFront] = field(default_factory=dict)

    @property
    def chosen(self) -> dict[str, GroupFront]:
        """Those that a plan takes its supports from."""
        return {**self.plain, **self.listed}


def whole_here(captured: Captured, constraints: Constraints) -> dict[str, str]:
    """Groups that stay whole, and why: those that cannot be re-estimated, and those that `--leave` names."""
    unsolved = whole_groups(captured.graph, captured.manifest["layers"])
    return left_groups(captured.graph, constraints.leave) | unsolved


def find_fronts(
    run: Run,
    captured: Captured,
    settings: SolveSettings,
    on_event: OnEvent = ignore,
    constraints: Constraints | None = None,
    execution: Execution | None = None,
) -> dict[str, GroupFront]:
    """The plain fronts of all groups that do not stay whole; committed ones of the same source are kept.

    Each of the others is noticed by name, with the layer that is in the way.
    """
    statistics = Statistics(run).require(captured.manifest["layers"])
    whole = whole_here(captured, constraints or Constraints())
    for name, reason in whole.items():
        on_event(Notice("solve", f"group '{name}' stays whole: {reason}"))
    groups = [group for group in captured.graph.groups if group.name not in whole]
    found: dict[str, GroupFront] = {}
    todo = []
    for group in groups:
        committed = _committed(run, layout.front_key(group.name), front_source(statistics, group, settings))
        if committed is None:
            todo.append(group)
        else:
            found[group.name] = committed
    with recorded(run, "solve", on_event) as on_event:
        if found:
            on_event(Reused("solve", f"the fronts of {len(found)} of {len(groups)} groups"))
        if todo:
            sources = [front_source(statistics, group, settings) for group in todo]
            with (execution or Execution()).open() as executor:
                for name in solve_side_by_side(run, captured, todo, settings, sources, executor, on_event):
                    group = captured.graph.group(name)
                    front = _committed(run, layout.front_key(name), front_source(statistics, group, settings))
                    assert front is not None
                    found[name] = front
    return {group.name: found[group.name] for group in groups}


def find_constrained_fronts(
    run: Run, captured: Captured, settings: SolveSettings, constraints: Constraints, on_event: OnEvent = ignore
) -> dict[str, GroupFront]:
    """The fronts of the groups with lists, each kept under its own lists: another list loses none of them."""
    statistics, whole = Statistics(run), whole_here(captured, constraints)
    found: dict[str, GroupFront] = {}
    todo = []
    for name in constraints.listed:
        if name not in whole:
            key, source = _listed_key(captured.graph.group(name), statistics, settings, constraints)
            committed = _committed(run, key, source)
            if committed is None:
                todo.append(captured.graph.group(name))
            else:
                found[name] = committed
    if todo:
        originals = Originals.of(run)
        with (
            recorded(run, "solve with lists", on_event) as on_event,
            reporting("solve with lists", len(todo), "groups", on_event) as advance,
        ):
            for group in todo:
                own = {consumer.layer: statistics[consumer.layer] for consumer in group.consumers}
                with one_blas_thread():
                    lists = constraints.lists_of(group.name)
                    front = solve_constrained_group(group, captured.graph.layers, own, settings, *lists, originals)
                commit_front(run, *_listed_key(group, statistics, settings, constraints), front)
                found[group.name] = front
                advance(1)
    return found


def committed_fronts(
    run: Run, captured: Captured, settings: SolveSettings, constraints: Constraints
) -> RunFronts | None:
    """What `find_fronts` and `find_constrained_fronts` would find without any work, or None."""
    statistics, whole = Statistics(run), whole_here(captured, constraints)
    plain: dict[str, GroupFront | None] = {}
    listed: dict[str, GroupFront | None] = {}
    for group in captured.graph.groups:
        if group.name in whole:
            continue
        plain[group.name] = _committed(run, layout.front_key(group.name), front_source(statistics, group, settings))
        if group.name in constraints.listed:
            listed[group.name] = _committed(run, *_listed_key(group, statistics, settings, constraints))
    if None in plain.values() or None in listed.values():
        return None
    return RunFronts(
        {name: front for name, front in plain.items() if front is not None},
        {name: front for name, front in listed.items() if front is not None},
    )


def front_source(statistics: Statistics, group: ChannelGroup, settings: SolveSettings) -> str:
    about = [statistics.description(consumer.layer) or {} for consumer in group.consumers]
    return settings.source([description.get("source", "") for description in about])


def _listed_key(
    group: ChannelGroup, statistics: Statistics, settings: SolveSettings, constraints: Constraints
) -> tuple[str, str]:
    """Where the front with these lists lies, and its source."""
    lists = [own.tolist() for own in constraints.lists_of(group.name)]
    identity = json.dumps([front_source(statistics, group, settings), *lists])
    source = hashlib.sha256(identity.encode()).hexdigest()
    return layout.listed_front_key(group.name, source[:16]), source


def _committed(run: Run, key: str, source: str) -> GroupFront | None:
    about = run.records.description(key)
    if about is None or about.get("source") != source:
        return None
    record = run.records.read(key)
    return None if record is None else GroupFront.from_arrays(record.arrays, record.description)
