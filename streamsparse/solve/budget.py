"""Budgets: how small the network must become, and which channel counts meet it at the least predicted error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from streamsparse.errors import BudgetError
from streamsparse.kernels.costs import CostModel

_QUANTITIES = ("params", "macs", "bytes")
_FORMS = "params=X, macs=X or bytes=X (a fraction up to 1 or an absolute number), sparsity=X, or max-error=X"


@dataclass(frozen=True)
class Budget:
    """A bound on the pruned network.

    Attributes:
        kind: "params", "macs", "bytes" or "max-error".
        limit: the largest number of parameters, MACs or bytes as a fraction of the original's if at most 1, else
            absolute; or the largest held-out relative error of every group.
    """

    kind: str
    limit: float


def parse_budget(text: str) -> Budget:
    """`params=0.2`, `macs=0.5`, `bytes=1000000`, `sparsity=0.887` or `max-error=0.01`.

    Raises:
        BudgetError: anything else.
    """
    kind, _, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = -1.0
    if not isfinite(limit):
        limit = -1.0
    if kind == "sparsity" and 0 <= limit < 1:
        return Budget("params", 1 - limit)
    if (kind in _QUANTITIES and limit > 0) or (kind == "max-error" and limit >= 0):
        return Budget(kind, limit)
    raise BudgetError("This budget does not parse.", expected=_FORMS, got=text, where="--budget")


def allocate(
    budget: Budget, errors: Mapping[str, np.ndarray], costs: CostModel, fixed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Channels to keep in every group.

    Args:
        budget: the bound.
        errors: for every group, the predicted relative error with k positions kept, (positions + 1,).
        costs: of every architecture.
        fixed: groups whose count is given.

    Raises:
        BudgetError: even one channel per free group exceeds the bound; says what is the least possible.
    """
    fixed = dict(fixed or {})
    free = {name: error for name, error in errors.items() if name not in fixed}
    if budget.kind == "max-error":
        return fixed | {name: least_count(error, budget.limit) for name, error in free.items()}
    start = fixed | {name: len(error) - 1 for name, error in free.items()}
    smallest = fixed | dict.fromkeys(free, 1)
    limit = budget.limit * cost_of(costs, budget.kind, {}) if budget.limit <= 1 else budget.limit
    if cost_of(costs, budget.kind, smallest) > limit:
        raise BudgetError(
            "No architecture meets this budget.",
            expected=f"{budget.kind} ≤ {limit:,.0f}",
            got=f"at least {cost_of(costs, budget.kind, smallest):,} with one channel in every group",
            where="--budget",
            remedy="raise the budget, or fix fewer channel counts",
        )
    return _descend(start, free, costs, budget.kind, limit)


def least_count(errors: np.ndarray, bound: float) -> int:
    """The least count from 1 up whose error, and every larger count's, is within `bound`; all if none is."""
    within = errors[1:] <= bound
    first = len(within) - int(np.argmin(within[::-1])) if not within.all() else 0
    return min(first + 1, len(within))


def cost_of(costs: CostModel, kind: str, counts: Mapping[str, int]) -> int:
    """Parameters, MACs or bytes of an architecture; groups that are absent are whole."""
    functions = {"params": costs.parameters, "macs": costs.macs, "bytes": costs.bytes}
    return functions[kind](counts)


def _descend(
    counts: dict[str, int], errors: Mapping[str, np.ndarray], costs: CostModel, kind: str, limit: float
) -> dict[str, int]:
    """Steepest descent: of all reductions of one group, take the one that costs least error per unit saved.

    A step may pass over several counts at once, so that a bump in a group's error does not block the way. What
    the last step saved beyond the limit is then given back where it lowers the error most.
    """
    current = cost_of(costs, kind, counts)
    while current > limit:
        name, count = min(_reductions(counts, errors, costs, kind, current, limit), key=lambda step: step[0])[1]
        counts = {**counts, name: count}
        current = cost_of(costs, kind, counts)
    return _give_back(counts, errors, costs, kind, limit)


def _reductions(
    counts: Mapping[str, int],
    errors: Mapping[str, np.ndarray],
    costs: CostModel,
    kind: str,
    current: int,
    limit: float,
) -> Sequence[tuple[float, tuple[str, int]]]:
    steps = []
    for name, error in errors.items():
        for count in range(counts[name] - 1, 0, -1):
            saved = current - cost_of(costs, kind, {**counts, name: count})
            if saved > 0:
                steps.append(((error[count] - error[counts[name]]) / min(saved, current - limit), (name, count)))
    return steps


def _give_back(
    counts: dict[str, int], errors: Mapping[str, np.ndarray], costs: CostModel, kind: str, limit: float
) -> dict[str, int]:
    while True:
        candidates = [
            (error[counts[name] + 1] - error[counts[name]], name)
            for name, error in errors.items()
            if counts[name] + 1 < len(error) and cost_of(costs, kind, {**counts, name: counts[name] + 1}) <= limit
        ]
        gain, name = min(candidates, default=(0.0, ""))
        if gain >= 0:
            return counts
        counts = {**counts, name: counts[name] + 1}
