"""One channel group: every count of kept channels with its best support, training error and held-out error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from streamsparse.errors import UsageError
from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.kernels.front import Method, solve_front
from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.pareto import FoundBy, Front
from streamsparse.kernels.regression import Problem
from streamsparse.solve.originals import Originals
from streamsparse.solve.problems import Statistics, group_problem
from streamsparse.solve.threads import one_blas_thread
from streamsparse.solve.validation import cross_validated
from streamsparse.types import ChannelGraph, ChannelGroup, LayerGeometry

METHODS: tuple[Method, ...] = ("best", "entropic", "elimination")
_CROSS_VALIDATION_FLOPS = 1e11  # per group: some 5 s on one core
_SPREAD_COUNTS = 24
_CLOSE_TO_ALL = np.array([1, 2, 4, 8])
_HELD_OUT = (
    "refits and context shrunk towards the original; ratios above what is resolved"  # part of a front's identity
)
_RESOLVED = 1e-6  # of relative errors: what is less is round-off of float32 products


@dataclass(frozen=True)
class SolveSettings:
    """How fronts are found.

    Attributes:
        method: "entropic" (the paper's alternation along its path), "elimination", or "best" of both and exchanges.
        ridge: relative to each channel's mean diagonal.
    """

    method: Method = "best"
    ridge: float = DEFAULT_RIDGE

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError("Unknown method.", expected=" | ".join(METHODS), got=self.method, where="--method")

    def source(self, statistics_sources: list[str]) -> str:
        """SHA-256 of these settings on statistics with the given sources: the identity of a front."""
        identity = json.dumps([asdict(self), statistics_sources, _HELD_OUT], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class GroupFront:
    """The front of one group with its held-out errors.

    Attributes:
        group: name.
        front: best support and training error for every count.
        held_out: relative error on held-out folds, (positions + 1,). At counts that are not in `evaluated` it is
            the training error times the ratio interpolated (its logarithm) between neighbours, or that of the
            largest evaluated; see `interpolated`.
        evaluated: counts at which the held-out error was computed, sorted.
    """

    group: str
    front: Front
    held_out: np.ndarray
    evaluated: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """What a record of this front holds; `from_arrays` is the inverse."""
        kept = np.zeros((self.front.positions + 1, self.front.positions), dtype=np.bool_)
        for count, support in enumerate(self.front.supports):
            kept[count, support] = True
        return {"kept": kept, "errors": self.front.errors, "held_out": self.held_out, "evaluated": self.evaluated}

    def description(self) -> dict[str, Any]:
        """What a record of this front says beside its arrays."""
        return {"group": self.group, "methods": list(self.front.methods), "ridge": self.front.ridge}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> GroupFront:
        """The front that `arrays` and `description` were made from."""
        methods = cast("tuple[FoundBy, ...]", tuple(description["methods"]))
        supports = tuple(np.flatnonzero(row) for row in arrays["kept"])
        front = Front(supports, arrays["errors"], methods, description["ridge"])
        return cls(description["group"], front, arrays["held_out"], arrays["evaluated"])


def solve_groups(
    graph: ChannelGraph,
    groups: list[ChannelGroup],
    statistics: Statistics,
    settings: SolveSettings,
    originals: Originals | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[GroupFront]:
    """The fronts of the given groups, one after the other, as they are found; see `solve_group`."""
    with reporting("solve", len(groups), "groups", on_event) as advance:
        for group in groups:
            own = {consumer.layer: statistics[consumer.layer] for consumer in group.consumers}
            with one_blas_thread():
                front = solve_group(group, graph.layers, own, settings, originals)
            yield front
            advance(1)


def solve_group(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    settings: SolveSettings,
    originals: Originals | None = None,
) -> GroupFront:
    """The front of one group, on all folds, with held-out errors by cross-validation.

    Args:
        originals: weights that refits go back to where the patches cannot tell; None shrinks them towards 0.
    """
    problem = group_problem(group, geometries, statistics)
    front = solve_front(problem, method=settings.method, ridge=settings.ridge)
    folds = len(statistics[group.consumers[0].layer])
    counts = evaluated_counts(problem, folds)
    del problem  # a wide layer's Gram is large, and one fold at a time is held below
    return with_held_out_errors(group, geometries, statistics, front, counts, originals)


def with_held_out_errors(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    front: Front,
    counts: np.ndarray,
    originals: Originals | None = None,
) -> GroupFront:
    """The front with errors cross-validated at these sorted counts, interpolated at the others."""
    supports = [front.supports[count] for count in counts]
    errors = cross_validated(group, geometries, statistics, supports, front.ridge, originals)
    return GroupFront(group.name, front, interpolated(front.errors, counts, errors), counts)


def evaluated_counts(problem: Problem, folds: int) -> np.ndarray:
    """All counts of small groups; of wide ones a geometric sequence, upwards as far as the effort allows.

    And some close below all: where all stay there is no error, which tells nothing of the counts before.
    """
    positions = problem[0].positions
    every = np.arange(positions + 1)
    flops = np.zeros(positions + 1)
    for regression in problem:
        columns = every * regression.taps
        flops += folds * columns**2.0 * (columns / 3 + 2 * regression.outputs)
    if flops.sum() <= _CROSS_VALIDATION_FLOPS:
        return every
    spread = np.geomspace(1, positions, num=_SPREAD_COUNTS).round().astype(np.int64)
    spread = np.unique(np.append(spread, np.maximum(positions - _CLOSE_TO_ALL, 1)))
    affordable = spread[np.cumsum(flops[spread]) <= _CROSS_VALIDATION_FLOPS]
    return np.concatenate([[0], affordable if affordable.size else spread[:1]])


def interpolated(training: np.ndarray, counts: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Held-out errors at every count from some: a reference times the ratio, interpolated in its logarithm.

    The reference is the training error. Where that tells nothing, since there are fewer rows than columns, it is a
    tenth of the held-out error, itself interpolated in its logarithm. Where both are round-off (all positions kept,
    or all but dead ones) their ratio is noise that must not reach the counts before: `_RESOLVED` is added to both,
    and taken off at the end.

    Args:
        training: errors, (positions + 1,).
        counts: sorted; held_out: errors there. Beyond the last the ratio stays.
    """
    training = np.maximum(training, 0.0) + _RESOLVED
    every, known = np.arange(len(training)), np.log(np.maximum(held_out, 0.0) + _RESOLVED)
    between = np.exp(np.interp(every, counts, known))
    reference = np.log(np.maximum(training, between / 10))
    errors: np.ndarray = np.exp(reference + np.interp(every, counts, known - reference[counts])) - _RESOLVED
    errors[counts] = held_out
    last = counts[-1]
    errors[last + 1 :] = training[last + 1 :] * np.exp(known[-1]) / training[last] - _RESOLVED
    least: np.ndarray = np.maximum(errors, 0.0)
    return least
