"""What a run holds that its report is made of, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamsparse.errors import StageMissingError
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.network.observation import whole_groups
from streamsparse.solve import GroupFront, SolveSettings
from streamsparse.solve.finding import RunFronts, front_source
from streamsparse.solve.fronts import METHODS
from streamsparse.solve.measured import read_sensitivities
from streamsparse.solve.stage import losses_of
from streamsparse.store import Run, layout
from streamsparse.store.solution import read_solution
from streamsparse.store.statistics import Statistics
from streamsparse.types import Sensitivity, Solution

LOSS_UNITS = {
    "divergence": "nats per image",
    "squared difference": "of the outputs' variance",
    "error": "sum of the groups' held-out relative errors",
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """A run as far as it has come.

    Attributes:
        captured: manifest, channel graph, costs.
        statistics: of the layers that are summed.
        whole: groups that cannot be cut, and why.
        fronts: those that are committed, by group; of all other groups that is all there is to see.
        losses: by group and count, (positions + 1,), of the groups that the solution is about (before there is one:
            all that can be cut), if they all have a front; else empty.
        loss_kind: of `losses`, see `PrunePlan`.
        sensitivities: as measured, of fronts that are still those, by group.
        solution: or None.
        notes: what is missing or odd about these.
    """

    run: Run
    captured: Captured
    statistics: Statistics
    whole: Mapping[str, str]
    fronts: Mapping[str, GroupFront]
    losses: Mapping[str, np.ndarray]
    loss_kind: str
    sensitivities: Mapping[str, Sensitivity]
    solution: Solution | None
    notes: tuple[str, ...]

    @property
    def summed(self) -> list[str]:
        """Captured layers with statistics, in order of execution."""
        return [layer for layer in self.captured.manifest["layers"] if layer in self.statistics]


def read_evidence(run: Run) -> Evidence:
    """Read everything; solve, sum and measure nothing.

    Raises:
        RunNotFoundError, SchemaVersionError, CorruptDataError: there is no readable run.
    """
    captured = read_captured(run)
    statistics = Statistics(run)
    whole = whole_groups(captured.graph, captured.manifest["layers"])
    try:
        solution = read_solution(run)
    except StageMissingError:
        solution = None
    fronts, notes = _fronts(run, captured, statistics, whole)
    free = {group.name for group in captured.graph.groups if group.name not in whole}
    chosen = free if solution is None else free & solution.plan.keep.keys()  # others were left by hand
    losses: Mapping[str, np.ndarray] = {}
    kind = "error"
    if chosen and fronts.keys() >= chosen:
        losses, kind = losses_of(run, RunFronts({name: fronts[name] for name in fronts if name in chosen}))
    measured = read_sensitivities(run, fronts) or {}
    return Evidence(run, captured, statistics, whole, fronts, losses, kind, measured, solution, tuple(notes))


def _fronts(
    run: Run, captured: Captured, statistics: Statistics, whole: Mapping[str, str]
) -> tuple[dict[str, GroupFront], list[str]]:
    """Committed fronts, and whether they belong to the statistics of now."""
    found: dict[str, GroupFront] = {}
    foreign = []
    for group in captured.graph.groups:
        record = run.records.read(layout.front_key(group.name)) if group.name not in whole else None
        if record is None:
            continue
        found[group.name] = GroupFront.from_arrays(record.arrays, record.description)
        sources = {front_source(statistics, group, SolveSettings(method)) for method in METHODS}
        if record.description.get("source") not in sources:
            foreign.append(group.name)
    notes = []
    if foreign:
        notes.append(
            f"The fronts of {listed(foreign)} were found with settings of their own, or from statistics that have "
            "changed since."
        )
    return found, notes


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few of them, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
