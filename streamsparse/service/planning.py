"""Plans from stored fronts, at once: what a run's fronts and losses say is loaded once and kept while it holds.

    run's documents (fronts, statistics, sensitivities) ──signature──> Loaded: fronts, losses ──> plan, front

A signature is taken at every request: the documents' times and sizes on a disk, their contents in a bucket.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamsparse.errors import BudgetError, StageMissingError
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.intake.latencies import read_latencies
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.report import layer_reports
from streamsparse.service.schemas.budgets import Choice, ConstraintOptions
from streamsparse.solve import Constraints, NetworkPoint, SolveSettings, make_plan, network_front, parse_budget
from streamsparse.solve.budget import QUANTITIES, cost_of, least_error
from streamsparse.solve.finding import RunFronts, committed_fronts, whole_here
from streamsparse.solve.plan import check_request
from streamsparse.solve.stage import losses_of
from streamsparse.store import Run, layout
from streamsparse.types import LayerReport, PrunePlan, Solution

RUNS_KEPT, CHOICES_KEPT = 16, 32
BUCKET_SECONDS = 2.0
"""How long the signature of a run in a bucket is believed: taking one costs a round trip or three."""


@dataclass(frozen=True, eq=False)
class Found:
    """Fronts and losses under some lists of positions and layers that are left alone."""

    fronts: RunFronts
    losses: Mapping[str, np.ndarray]
    loss_kind: str
    whole: Mapping[str, str]
    points: dict[tuple[Any, ...], tuple[NetworkPoint, ...]] = field(default_factory=dict)


@dataclass(eq=False)
class Loaded:
    """What is kept of one run."""

    captured: Captured
    signature: str
    checked: float
    by_choice: OrderedDict[str, Found] = field(default_factory=OrderedDict)


@dataclass(frozen=True)
class Planned:
    """A plan, and what it means layer by layer."""

    plan: PrunePlan
    layers: tuple[LayerReport, ...]
    whole: Mapping[str, str]
    original_seconds: float | None


class Planner:
    """Plans for all runs of a service; at most `at_once` are computed at the same time."""

    def __init__(self, at_once: int = 2) -> None:
        self._runs: OrderedDict[str, Loaded] = OrderedDict()
        self._lock, self._room = threading.Lock(), threading.BoundedSemaphore(at_once)

    def captured(self, run: Run) -> Captured:
        """The run's manifest, parsed."""
        return self._loaded(run).captured

    def plan(self, run: Run, choice: Choice, *, full: bool = False, device: str | None = None) -> Planned:
        """The architecture of least predicted loss under a choice; decides nothing.

        Args:
            full: search as long as `solve` does. Else a budget of parameters, MACs or bytes is answered by the
                search of the network's front, a fifth of the time: in rare cases its loss is slightly higher.
            device: predict seconds on it; None for that of the budget, if any.

        Raises:
            StageMissingError: fronts are not found yet; no latencies of the device.
            UsageError, BudgetError: see `make_plan`.
        """
        constraints = constraints_of(choice)
        with self._room:
            captured = self.captured(run)
            sizes = {group.name: group.size for group in captured.graph.groups}
            whole = whole_here(captured, constraints)
            check_request(choice.budget, choice.channels, sizes, whole, constraints)
            bounded = _device(choice.budget)
            latencies = latencies_of(run, captured, bounded or device)
            found = self._found(run, constraints)
            free = {name: count for name, count in (choice.channels or {}).items() if name in found.fronts.plain}
            counts = None if full or free else _quick_counts(found, captured, choice.budget, constraints)
            plan = make_plan(
                found.fronts.chosen, captured.costs, budget=None if counts else choice.budget,
                channels=counts or free, constraints=constraints.of(found.fronts.plain), losses=found.losses,
                loss_kind=found.loss_kind, latencies=latencies,
            )  # fmt: skip
            plan = replace(plan, budget=choice.budget)
            layers = layer_reports(captured.graph, captured.costs, Solution(plan, (), "planned"))
        return Planned(plan, layers, whole, None if latencies is None else float(latencies.whole_seconds))

    def front(
        self, run: Run, options: ConstraintOptions, quantity: str, points: int
    ) -> tuple[tuple[NetworkPoint, ...], Found]:
        """The network's front over a quantity.

        Raises:
            StageMissingError, UsageError, BudgetError: as for `plan`.
        """
        constraints = constraints_of(options)
        with self._room:
            captured = self.captured(run)
            sizes = {group.name: group.size for group in captured.graph.groups}
            constraints.check(sizes, whole_here(captured, constraints))
            found = self._found(run, constraints)
            key = (quantity, points, constraints.round_to, constraints.min_channels)
            if key not in found.points:
                found.points[key] = _points(found, captured, constraints, quantity, points)
            return found.points[key], found

    def _found(self, run: Run, constraints: Constraints) -> Found:
        loaded = self._loaded(run)
        lists = (constraints.keep, constraints.drop, sorted(constraints.leave))
        key = hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in loaded.by_choice:
                loaded.by_choice.move_to_end(key)
                return loaded.by_choice[key]
        fronts = committed_fronts(run, loaded.captured, SolveSettings(), constraints)
        if fronts is None:
            raise _no_fronts(constraints)
        losses, kind = losses_of(run, fronts)
        found = Found(fronts, losses, kind, whole_here(loaded.captured, constraints))
        with self._lock:
            loaded.by_choice[key] = found
            while len(loaded.by_choice) > CHOICES_KEPT:
                loaded.by_choice.popitem(last=False)
        return found

    def _loaded(self, run: Run) -> Loaded:
        with self._lock:
            known = self._runs.get(run.url)
        now = time.monotonic()
        if known is not None and run.directory is None and now - known.checked < BUCKET_SECONDS:
            return known
        if known is not None and signature_of(run, known.captured) == known.signature:
            known.checked = now
            return known
        captured = read_captured(run)
        loaded = Loaded(captured, signature_of(run, captured), now)  # a change after this is seen the next time
        with self._lock:
            self._runs[run.url] = loaded
            self._runs.move_to_end(run.url)
            while len(self._runs) > RUNS_KEPT:
                self._runs.popitem(last=False)
        return loaded


def constraints_of(options: ConstraintOptions) -> Constraints:
    """The solver's constraints.

    Raises:
        UsageError: they contradict one another.
    """
    keep, drop = ({group: tuple(own) for group, own in lists.items()} for lists in (options.keep, options.drop))
    return Constraints(options.round_to, options.min_channels, keep, drop, tuple(options.leave))


def signature_of(run: Run, captured: Captured) -> str:
    """Changes whenever a document changes that a plan depends on."""
    groups = [group.name for group in captured.graph.groups]
    keys = [layout.MANIFEST, layout.SENSITIVITIES]
    keys += [f"{layout.front_key(name)}/{layout.RECORD}" for name in groups]
    keys += [layout.sensitivity_key(name) for name in groups]
    layers = captured.manifest["layers"]
    keys += [f"{layout.statistics_key(layout.ORIGINAL_STREAM, layer)}/{layout.RECORD}" for layer in layers]
    if run.directory is None:
        contents: list[object] = list(run.documents.read_many_json(keys))
    else:
        contents = [_version(run.directory / key) for key in keys]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def _quick_counts(
    found: Found, captured: Captured, budget: str | None, constraints: Constraints
) -> dict[str, int] | None:
    """Counts within a budget of parameters, MACs or bytes; None where there is no short way to them."""
    parsed = None if budget is None else parse_budget(budget)
    if parsed is None or parsed.kind not in QUANTITIES:
        return None
    fraction = parsed.absolute(captured.costs) / cost_of(captured.costs, parsed.kind, {})
    try:
        points = network_front(
            found.fronts.chosen, captured.costs, found.losses, parsed.kind, [min(fraction, 1.0)], constraints
        )
    except BudgetError:  # the whole search says it in the words of the budget
        return None
    return points[0].counts


def _device(budget: str | None) -> str | None:
    """Of a budget of latency."""
    return parse_budget(budget).device if budget is not None else None


def latencies_of(run: Run, captured: Captured, device: str | None) -> LatencyModel | None:
    """Measured ones; None for no device.

    Raises:
        StageMissingError: none were measured on it.
    """
    return None if device is None else read_latencies(run, captured, device)


def _points(
    found: Found, captured: Captured, constraints: Constraints, quantity: str, points: int
) -> tuple[NetworkPoint, ...]:
    if quantity != "max-error":
        chosen = found.fronts.chosen
        return network_front(chosen, captured.costs, found.losses, quantity, points, constraints)
    fronts = found.fronts.chosen.items()
    allowed = {name: constraints.allowed(name, front.front.positions) for name, front in fronts}
    errors = {name: front.held_out for name, front in fronts}
    curves = [error[allowed[name]] for name, error in errors.items()]
    most = max((float(curve.max()) for curve in curves), default=1.0)
    least = min((float(curve[curve > 0].min(initial=most)) for curve in curves), default=most)
    attainable = (1 + 1e-5) * max(least_error(errors, allowed).values(), default=0.0)  # limits are told in 6 digits
    least = max(least, most / 1e6, attainable)
    limits = np.geomspace(least, max(least, most), points)
    return tuple(_point_within(found, captured, constraints, float(limit)) for limit in limits)


def _point_within(found: Found, captured: Captured, constraints: Constraints, limit: float) -> NetworkPoint:
    """The network with the fewest channels whose held-out errors are within a limit."""
    budget = f"max-error={limit:.6g}"
    plan = make_plan(
        found.fronts.chosen, captured.costs, budget=budget, constraints=constraints.of(found.fronts.plain),
        losses=found.losses, loss_kind=found.loss_kind,
    )  # fmt: skip
    fraction = plan.costs.parameters / plan.original_costs.parameters
    return NetworkPoint(budget, fraction, plan.costs, sum(plan.predicted_losses.values()), plan.counts)


def _no_fronts(constraints: Constraints) -> StageMissingError:
    what = "with these positions to keep and to drop" if constraints.listed else "of every group"
    return StageMissingError(
        "The run's fronts are not found yet.",
        expected=f"fronts {what}",
        got="none, or not all",
        remedy="submit a job of kind 'fronts' with the same keep and drop, then ask again",
    )
