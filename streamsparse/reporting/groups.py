"""Channel groups and the whole network's front, as a report shows them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from streamsparse.report.facts import FrontPoint, GroupFacts, NetworkPoint
from streamsparse.reporting.evidence import Evidence
from streamsparse.solve import GroupFront, network_front, parse_budget
from streamsparse.solve.budget import QUANTITIES
from streamsparse.solve.trade_offs import NetworkPoint as Network
from streamsparse.types import ChannelGroup, PrunePlan, Role

POINTS = 16
_ROUND_OFF = 1e-9


def group_facts(evidence: Evidence) -> tuple[GroupFacts, ...]:
    """Every group of the channel graph, in order of execution."""
    return tuple(_group(evidence, group) for group in evidence.captured.graph.groups)


def _group(evidence: Evidence, group: ChannelGroup) -> GroupFacts:
    plan = None if evidence.solution is None else evidence.solution.plan
    sensitivity = evidence.sensitivities.get(group.name)
    front = evidence.fronts.get(group.name)
    producers = (part.tensor.rpartition(".")[0] for part in group.slices if part.role is Role.PRODUCER)
    return GroupFacts(
        name=group.name,
        size=group.size,
        kept=tuple(range(group.size)) if plan is None else plan.keep.get(group.name, tuple(range(group.size))),
        consumers=tuple(dict.fromkeys(consumer.layer for consumer in group.consumers)),
        producers=tuple(dict.fromkeys(producers)),
        front=() if front is None else _points(front),
        predicted_loss=None if plan is None else plan.predicted_losses.get(group.name),
        sensitivity=() if sensitivity is None else tuple(zip(sensitivity.counts, sensitivity.losses, strict=True)),
    )


def _points(front: GroupFront) -> tuple[FrontPoint, ...]:
    evaluated = set(front.evaluated.tolist())
    return tuple(
        FrontPoint(
            kept=count,
            training_error=float(front.front.errors[count]),
            held_out_error=float(front.held_out[count]) if count in evaluated else None,
            method=front.front.methods[count],
        )
        for count in range(front.front.positions + 1)
    )


def predicted_loss(evidence: Evidence) -> tuple[float | None, str]:
    """Of the pruned network, and its kind: as it was chosen by, or as known now where that is another kind."""
    if evidence.solution is None:
        return None, evidence.loss_kind
    plan = evidence.solution.plan
    if not evidence.losses or plan.loss_kind == evidence.loss_kind:
        return sum(plan.predicted_losses.values()), plan.loss_kind
    return sum(float(evidence.losses[name][count]) for name, count in plan.counts.items()), evidence.loss_kind


def network_points(evidence: Evidence, points: int = POINTS) -> tuple[tuple[NetworkPoint, ...], int | None]:
    """The network of least predicted loss for a range of budgets, with the chosen one, and its place in them.

    Ascending in parameters; spread over the quantity that the budget bounds.
    """
    if not evidence.losses:
        return (), None
    plan = None if evidence.solution is None else evidence.solution.plan
    fronts = {name: evidence.fronts[name] for name in evidence.losses}
    quantity = _quantity(plan)
    networks = network_front(fronts, evidence.captured.costs, evidence.losses, quantity, points)
    ordered = sorted(_undominated(networks), key=lambda point: (point.costs.parameters, point.costs.macs))
    loss, _ = predicted_loss(evidence)
    if plan is None or loss is None:
        return tuple(ordered), None
    for index, point in enumerate(ordered):
        if point.costs == plan.costs and abs(point.predicted_loss - loss) <= _ROUND_OFF * max(loss, 1e-300):
            return tuple(ordered), index
    index = bisect_left([point.costs.parameters for point in ordered], plan.costs.parameters)
    ordered.insert(index, NetworkPoint(plan.costs, loss))
    return tuple(ordered), index


def _undominated(networks: Sequence[Network]) -> list[NetworkPoint]:
    """Those that lose less than every smaller one: the allocation is a search, and may do better by chance."""
    found: list[NetworkPoint] = []
    for one in sorted(networks, key=lambda one: (one.fraction, one.predicted_loss)):
        if not found or one.predicted_loss < found[-1].predicted_loss:
            found.append(NetworkPoint(one.costs, one.predicted_loss))
    return found


def _quantity(plan: PrunePlan | None) -> str:
    """That the budget bounds, where it is a cost; else parameters."""
    kind = "params" if plan is None or plan.budget is None else parse_budget(plan.budget).kind
    return kind if kind in QUANTITIES else "params"
