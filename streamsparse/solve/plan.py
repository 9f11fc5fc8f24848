"""Which channels stay: counts from a budget or by hand, supports from the fronts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamsparse.errors import BudgetError, UsageError
from streamsparse.kernels.costs import CostModel
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.solve.budget import Budget, allocate, parse_budget
from streamsparse.solve.constraints import Constraints
from streamsparse.solve.fronts import GroupFront
from streamsparse.types import PrunePlan

ERROR = "error"
"""The kind of loss where no sensitivities are known."""


def make_plan(
    fronts: Mapping[str, GroupFront],
    costs: CostModel,
    *,
    budget: str | None = None,
    channels: Mapping[str, int] | None = None,
    constraints: Constraints | None = None,
    losses: Mapping[str, np.ndarray] | None = None,
    loss_kind: str = ERROR,
    latencies: LatencyModel | None = None,
    within: Mapping[str, tuple[int, int]] | None = None,
) -> PrunePlan:
    """Choose the counts, then take every group's best support of that count.

    Args:
        fronts: by group; those with positions to keep or to drop from `solve_constrained_group`.
        costs: of every architecture.
        budget: see `parse_budget`; groups named in `channels` are left as they are.
        channels: counts by hand. Without a budget the groups that are not named stay as large as they may.
        constraints: honoured by every budget and by counts by hand alike.
        losses: predicted by group and count, see `predicted_losses`; None for the held-out errors.
        loss_kind: what they are, see `PrunePlan`.
        latencies: measured on the device of a budget of latency.
        within: least and greatest count of a group, on top of the constraints.

    Raises:
        UsageError, BudgetError: see `check_request`; no architecture meets the budget.
    """
    constraints, fixed = constraints or Constraints(), dict(channels or {})
    whole = {name: front.front.positions for name, front in fronts.items()}
    check_request(budget, fixed, whole, constraints=constraints)
    errors = {name: front.held_out for name, front in fronts.items()}
    losses = errors if losses is None else losses
    allowed = {name: constraints.allowed(name, size) for name, size in whole.items()}
    for name, (least, most) in (within or {}).items():
        allowed[name] = allowed[name][(allowed[name] >= least) & (allowed[name] <= most)]
    counts = {name: int(own[-1]) for name, own in allowed.items()} | fixed
    if budget is not None:
        parsed = parse_budget(budget)
        _check_loss_known(parsed, loss_kind)
        supports = {name: front.front.supports for name, front in fronts.items()}
        counts = allocate(
            parsed, losses, costs, fixed, errors=errors, allowed=allowed, supports=supports, latencies=latencies
        )
    keep = {name: tuple(front.front.supports[counts[name]].tolist()) for name, front in fronts.items()}
    return PrunePlan(
        keep=keep,
        sizes=whole,
        predicted_errors={name: float(front.held_out[counts[name]]) for name, front in fronts.items()},
        methods={name: front.front.methods[counts[name]] for name, front in fronts.items()},
        costs=costs.costs_of_keep(keep),
        original_costs=costs.costs({}),
        budget=budget,
        predicted_losses={name: float(losses[name][counts[name]]) for name in fronts},
        loss_kind=loss_kind,
        predicted_seconds=None if latencies is None else float(latencies.seconds(counts)),
    )


def _check_loss_known(budget: Budget, loss_kind: str) -> None:
    if budget.kind == "max-loss" and loss_kind == ERROR:
        raise BudgetError(
            "A bound on the predicted loss needs to know what cutting each group does to the model's output.",
            expected="sensitivities of all groups",
            got="held-out errors alone",
            where="--budget max-loss",
            remedy="run `streamsparse sensitivity` first (`prune` measures them unless told --sensitivity none), "
            "or give max-error=X",
        )


def check_request(
    budget: str | None,
    channels: Mapping[str, int] | None,
    sizes: Mapping[str, int],
    whole: Mapping[str, str] | None = None,
    constraints: Constraints | None = None,
) -> None:
    """Refuse a request that cannot be met, before anything is computed for it.

    Args:
        budget: see `parse_budget`.
        channels: counts by hand, by group.
        sizes: positions of every group.
        whole: groups that stay whole, and why.
        constraints: see there.

    Raises:
        UsageError: neither budget nor counts nor positions to drop, unknown groups, counts out of range or against
            a constraint, or fewer than all channels of a group that stays whole.
        BudgetError: the budget does not parse.
    """
    constraints = constraints or Constraints()
    if budget is not None:
        parse_budget(budget)
    elif not channels and not constraints.drop:
        raise UsageError(
            "Nothing says how small the network must become.",
            expected="a budget or channel counts",
            got="neither",
            remedy="give --budget params=0.2, or --channels GROUP=COUNT,...",
        )
    for name, count in (channels or {}).items():
        _check_count(name, count, sizes, whole or {})
    constraints.check(sizes, whole or {})
    for name, count in (channels or {}).items():
        if name not in (whole or {}):
            _check_allowed(name, count, sizes[name], constraints)


def _check_count(name: str, count: int, sizes: Mapping[str, int], whole: Mapping[str, str]) -> None:
    if name not in sizes:
        raise UsageError(
            f"There is no channel group '{name}'.",
            expected=", ".join(sizes),
            got=name,
            where="--channels",
            remedy="`streamsparse inspect --groups` lists them",
        )
    if not 1 <= count <= sizes[name]:
        raise UsageError(
            f"Group '{name}' cannot keep that many channels.",
            expected=f"1 to {sizes[name]}",
            got=count,
            where="--channels",
        )
    if count < sizes[name] and name in whole:
        raise UsageError(
            f"Group '{name}' stays whole.",
            expected=f"all {sizes[name]} channels, or other groups",
            got=f"{count}; {whole[name]}",
            where="--channels",
            remedy="leave it out of --channels; `streamsparse inspect --groups` marks groups that cannot be solved",
        )


def _check_allowed(name: str, count: int, size: int, constraints: Constraints) -> None:
    allowed = constraints.allowed(name, size)
    if count not in allowed:
        nearest = allowed[np.argsort(np.abs(allowed - count), kind="stable")[:3]]
        raise UsageError(
            f"The constraints do not allow group '{name}' to keep that many channels.",
            expected=f"one of {len(allowed)} counts from {allowed[0]} to {allowed[-1]}; nearest: "
            + ", ".join(map(str, sorted(nearest))),
            got=count,
            where="--channels against --round-to, --min-channels, --keep, --drop",
            remedy="choose an allowed count, or loosen the constraint",
        )
