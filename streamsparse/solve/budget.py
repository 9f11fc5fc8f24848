"""Budgets: how small the network must become, and which channel counts meet it at the least predicted loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite

import numpy as np
from numpy.typing import NDArray

from streamsparse.errors import BudgetError
from streamsparse.kernels.costs import CostModel
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.solve.allocation import bound_of, least_cost, least_loss, whole_units
from streamsparse.solve.architecture import Architecture, Choices, CostTable, LatencyTable, PriceTable

QUANTITIES = ("params", "macs", "bytes")
_FORMS = (
    "params=X, macs=X or bytes=X (a fraction up to 1 or an absolute number), sparsity=X, latency=X@DEVICE "
    "(a fraction, or a time such as 5ms), max-error=X or max-loss=X"
)
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Budget:
    """A bound on the pruned network.

    Attributes:
        kind: "params", "macs", "bytes", "latency", "max-error" or "max-loss".
        limit: the largest number of parameters, MACs or bytes as a fraction of the original's if at most 1, else
            absolute; or the largest held-out relative error of every group; or the largest predicted loss of the
            network (nats per image), within which the parameters are fewest. Of a latency seconds, or a fraction of
            the original's if `relative`.
        device: of a latency.
        relative: whether a latency is a fraction.
    """

    kind: str
    limit: float
    device: str | None = None
    relative: bool = False

    @property
    def bounds_cost(self) -> bool:
        """Rather than an error or a loss."""
        return self.kind in QUANTITIES or self.kind == "latency"

    def absolute(self, costs: CostModel) -> float:
        """The limit in parameters, MACs or bytes."""
        return self.limit * cost_of(costs, self.kind, {}) if self.limit <= 1 else self.limit


def parse_budget(text: str) -> Budget:
    """Such as `params=0.2`, `bytes=1e6`, `sparsity=0.887`, `latency=5ms@cpu`, `max-error=0.01`, `max-loss=0.02`.

    Raises:
        BudgetError: anything else.
    """
    kind, _, value = text.partition("=")
    if kind == "latency":
        return _parse_latency(text, value)
    try:
        limit = float(value)
    except ValueError:
        limit = -1.0
    if not isfinite(limit):
        limit = -1.0
    if kind == "sparsity" and 0 <= limit < 1:
        return Budget("params", 1 - limit)
    if (kind in QUANTITIES and limit > 0) or (kind in ("max-error", "max-loss") and limit >= 0):
        return Budget(kind, limit)
    raise _unparsed(text)


def _parse_latency(text: str, value: str) -> Budget:
    """`0.5@cpu`: half of the original's; `5ms@cuda:0`."""
    amount, at, device = value.partition("@")
    unit = next((unit for unit in _TIMES if amount.endswith(unit)), "")
    try:
        limit = float(amount.removesuffix(unit)) * _TIMES.get(unit, 1.0)
    except ValueError:
        limit = -1.0
    if not (at and device and isfinite(limit) and limit > 0) or (not unit and limit > 1):
        raise _unparsed(text)
    return Budget("latency", limit, device, relative=not unit)


def _unparsed(text: str) -> BudgetError:
    return BudgetError("This budget does not parse.", expected=_FORMS, got=text, where="--budget")


def allocate(
    budget: Budget,
    losses: Mapping[str, np.ndarray],
    costs: CostModel,
    fixed: Mapping[str, int] | None = None,
    *,
    errors: Mapping[str, np.ndarray] | None = None,
    allowed: Mapping[str, NDArray[np.int64]] | None = None,
    supports: Mapping[str, Sequence[NDArray[np.int64]]] | None = None,
    latencies: LatencyModel | None = None,
) -> dict[str, int]:
    """Channels to keep in every group: of those within the budget, the counts of least predicted loss.

    Args:
        budget: the bound.
        losses: for every group, the predicted loss with k positions kept, (positions + 1,); the network's is their
            sum.
        costs: of every architecture.
        fixed: groups whose count is given.
        errors: held-out relative errors of the same form, for `max-error`; None for the losses.
        allowed: counts that a group may have, ascending; all from 1 for groups that are absent.
        supports: positions that every count keeps, so that costs are exact where positions differ in theirs.
        latencies: measured on the device of a budget of latency; needed for one.

    Raises:
        BudgetError: even the smallest architecture exceeds the bound on costs, or the largest the bound on the
            loss or on the errors; says what is the least possible.
    """
    every = {name: np.arange(1, len(curve)) for name, curve in losses.items()}
    counts_of = every | dict(allowed or {}) | {name: np.array([count]) for name, count in (fixed or {}).items()}
    if budget.kind == "max-error":
        return _within_error(errors or losses, counts_of, budget.limit)
    choices = [
        Choices.of(name, curve, costs, counts_of[name], (supports or {}).get(name))
        for name, curve in losses.items()
    ]
    if budget.kind == "max-loss":
        return _within_loss(CostTable(costs, "params", choices), budget.limit)
    if budget.kind == "latency":
        if latencies is None:
            raise BudgetError(
                "A budget of latency needs latencies.", expected=f"those of {budget.device}", got="none"
            )
        whole = latencies.whole_seconds if budget.relative else 1.0
        nanoseconds = 1e9 * budget.limit * whole
        return _within_cost(LatencyTable(latencies, choices), f"nanoseconds on {budget.device}", nanoseconds)
    return _within_cost(CostTable(costs, budget.kind, choices), budget.kind, budget.absolute(costs))


def _within_cost(table: PriceTable, quantity: str, limit: float) -> dict[str, int]:
    smallest = Architecture(table, [0] * len(table.choices))
    if smallest.cost > bound_of(limit):
        raise BudgetError(
            "No architecture meets this budget.",
            expected=f"{quantity} ≤ {whole_units(limit):,}",
            got=f"at least {ceil(smallest.cost - bound_of(0)):,} with as few channels in every group as may be",
            where="--budget",
            remedy="raise the budget, fix fewer channel counts, or loosen the constraints",
        )
    return least_loss(table, limit).counts


def _within_loss(table: CostTable, limit: float) -> dict[str, int]:
    """Fewest parameters."""
    largest = Architecture(table, [len(one.counts) - 1 for one in table.choices])
    if largest.loss > limit:
        raise BudgetError(
            "No architecture meets this bound on the predicted loss.",
            expected=f"a predicted loss of at most {limit:g}",
            got=f"at least {largest.loss:.3g} with as many channels in every group as may be",
            where="--budget",
            remedy="raise the bound, fix fewer channel counts, or drop fewer channels",
        )
    return least_cost(table, limit).counts


def _within_error(
    errors: Mapping[str, np.ndarray], counts_of: Mapping[str, NDArray[np.int64]], limit: float
) -> dict[str, int]:
    """Fewest channels of every group."""
    found = {name: least_count(error, limit, counts_of[name]) for name, error in errors.items()}
    least = least_error(errors, counts_of)
    beyond = sorted((name for name in found if least[name] > limit), key=lambda name: -least[name])
    if beyond:
        each = [f"{least[name]:.3g} in '{name}' with {counts_of[name][-1]} channels" for name in beyond]
        raise BudgetError(
            "No architecture meets this bound on the held-out errors.",
            expected=f"an error of at most {limit:g} in every group",
            got=f"at least {'; '.join(each[:3])}" + f"; and {len(each) - 3} more" * (len(each) > 3),
            where="--budget",
            remedy="raise the bound, fix larger channel counts, or drop fewer channels",
        )
    return found


def least_error(errors: Mapping[str, np.ndarray], counts_of: Mapping[str, NDArray[np.int64]]) -> dict[str, float]:
    """Of every group, with as many positions as it may have; 0 with all of them, whatever rounding left there."""
    return {
        name: float(error[counts_of[name][-1]]) if counts_of[name][-1] < len(error) - 1 else 0.0
        for name, error in errors.items()
    }


def least_count(errors: np.ndarray, bound: float, allowed: np.ndarray | None = None) -> int:
    """The least allowed count whose error, and every larger one's, is within `bound`; the largest if none is."""
    counts = np.arange(1, len(errors)) if allowed is None else allowed
    beyond = np.flatnonzero(errors[counts] > bound)
    first = int(beyond[-1]) + 1 if beyond.size else 0
    return int(counts[min(first, len(counts) - 1)])


def cost_of(costs: CostModel, kind: str, counts: Mapping[str, int]) -> int:
    """Parameters, MACs or bytes of an architecture; groups that are absent are whole."""
    functions = {"params": costs.parameters, "macs": costs.macs, "bytes": costs.bytes}
    return functions[kind](counts)
