"""Which channels stay: counts from a budget or by hand, supports from the fronts."""

from __future__ import annotations

from collections.abc import Mapping

from streamsparse.errors import UsageError
from streamsparse.kernels.costs import CostModel
from streamsparse.solve.budget import allocate, parse_budget
from streamsparse.solve.fronts import GroupFront
from streamsparse.types import PrunePlan


def make_plan(
    fronts: Mapping[str, GroupFront],
    costs: CostModel,
    *,
    budget: str | None = None,
    channels: Mapping[str, int] | None = None,
) -> PrunePlan:
    """Choose the counts, then take every group's best support of that count.

    Args:
        fronts: by group.
        costs: of every architecture.
        budget: see `parse_budget`; groups named in `channels` are left as they are.
        channels: counts by hand. Without a budget the groups that are not named stay whole.

    Raises:
        UsageError, BudgetError: see `check_request`; no architecture meets the budget.
    """
    fixed = dict(channels or {})
    whole = {name: front.front.positions for name, front in fronts.items()}
    check_request(budget, fixed, whole)
    errors = {name: front.held_out for name, front in fronts.items()}
    counts = allocate(parse_budget(budget), errors, costs, fixed) if budget is not None else whole | fixed
    keep = {name: tuple(front.front.supports[counts[name]].tolist()) for name, front in fronts.items()}
    return PrunePlan(
        keep=keep,
        sizes=whole,
        predicted_errors={name: float(front.held_out[counts[name]]) for name, front in fronts.items()},
        methods={name: front.front.methods[counts[name]] for name, front in fronts.items()},
        costs=costs.costs_of_keep(keep),
        original_costs=costs.costs({}),
        budget=budget,
    )


def check_request(
    budget: str | None,
    channels: Mapping[str, int] | None,
    sizes: Mapping[str, int],
    whole: Mapping[str, str] | None = None,
) -> None:
    """Refuse a request that cannot be met, before anything is computed for it.

    Args:
        budget: see `parse_budget`.
        channels: counts by hand, by group.
        sizes: positions of every group.
        whole: groups that stay whole, and why.

    Raises:
        UsageError: neither budget nor counts, unknown groups, counts out of range, or fewer than all channels of a
            group that stays whole.
        BudgetError: the budget does not parse.
    """
    if budget is not None:
        parse_budget(budget)
    elif not channels:
        raise UsageError(
            "Nothing says how small the network must become.",
            expected="a budget or channel counts",
            got="neither",
            remedy="give --budget params=0.2, or --channels GROUP=COUNT,...",
        )
    for name, count in (channels or {}).items():
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
        if count < sizes[name] and name in (whole or {}):
            raise UsageError(
                f"Group '{name}' cannot be solved: the weights of its consumers cannot be re-estimated.",
                expected=f"all {sizes[name]} channels, or other groups",
                got=f"{count}; {(whole or {})[name]}",
                where="--channels",
                remedy="leave it out of --channels; `streamsparse inspect --groups` marks such groups",
            )
