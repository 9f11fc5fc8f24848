"""Budgets: what the network could become, at once, from stored fronts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from streamsparse.network.observation import whole_groups
from streamsparse.service.context import Reader, Services, Submitter
from streamsparse.service.planning import latencies_of
from streamsparse.service.routes.jobs import IdempotencyKey, queue_job
from streamsparse.service.routes.names import RunName, problems
from streamsparse.service.schemas.budgets import (
    DEVICE_PATTERN,
    ConstraintOptions,
    FrontGroup,
    FrontView,
    PlanRequest,
    PlanView,
    Quantity,
)
from streamsparse.service.schemas.jobs import CheckpointParameters, JobView
from streamsparse.service.schemas.names import ModuleName
from streamsparse.service.views import costs_view, groups_of, plan_view, point_view
from streamsparse.store import layout

router = APIRouter(prefix="/api/v1/runs/{run}", tags=["budgets"])


@router.get("/front", summary="The network's Pareto front", responses=problems(409))
def show_front(
    run: RunName,
    service: Services,
    _: Reader,
    quantity: Annotated[Quantity, Query(description="What is bounded.")] = "params",
    points: Annotated[int, Query(ge=2, le=60, description="From the least possible to all, geometrically.")] = 20,
    round_to: Annotated[int, Query(ge=1, le=4096)] = 1,
    min_channels: Annotated[float, Query(gt=0, le=10_000_000, allow_inf_nan=False)] = 1,
    leave: Annotated[list[ModuleName], Query(max_length=100, description="Layers to leave alone.")] = [],  # noqa: B006
    device: Annotated[
        str | None, Query(pattern=DEVICE_PATTERN, description="Add predicted seconds on it to every point.")
    ] = None,
    curves: Annotated[bool, Query(description="Add every group's held-out errors by count.")] = False,
) -> FrontView:
    """Predicted loss of the network against parameters, MACs or bytes.

    Computed once from the run's stored fronts and then remembered; 409 until a job has found them.
    """
    named = service.root.find(run)
    options = ConstraintOptions(round_to=round_to, min_channels=min_channels, leave=leave)
    captured = service.planner.captured(named.run)
    found, about = service.planner.front(named.run, options, quantity, points)
    latencies = latencies_of(named.run, captured, device)
    errors = {name: front.held_out.tolist() for name, front in about.fronts.chosen.items()} if curves else {}
    groups = [
        FrontGroup(**group.model_dump(), held_out_errors=errors.get(group.name))
        for group in groups_of(captured, about.whole or whole_groups(captured.graph, captured.manifest["layers"]))
    ]
    tables = named.run.documents.names(layout.LATENCIES)
    return FrontView(
        run=run,
        quantity=quantity,
        loss_kind=about.loss_kind,
        original_costs=costs_view(captured.costs.costs({})),
        points=[point_view(point, latencies) for point in found],
        groups=groups,
        latency_devices=[layout.name_of(name.removesuffix(".json")) for name in tables],
    )


@router.post("/plan", summary="What would this budget give?", responses=problems(409, 413, 415))
def plan(run: RunName, asked: PlanRequest, service: Services, _: Reader) -> PlanView:
    """The architecture of least predicted loss within a budget, at once; nothing is decided or written.

    409 until a job has found the fronts; positions to keep or to drop need fronts of their own, which a job of kind
    `fronts` with the same lists finds.
    """
    named = service.root.find(run)
    planned = service.planner.plan(named.run, asked, full=asked.full, device=asked.device)
    return plan_view(run, service.planner.captured(named.run), planned, positions=asked.positions)


@router.post(
    "/checkpoints", status_code=202, summary="Write a checkpoint for a budget", responses=problems(409, 413, 415)
)
def write_checkpoint(
    run: RunName,
    asked: CheckpointParameters,
    service: Services,
    caller: Submitter,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """A job that solves for the budget and writes the checkpoint under its name."""
    return queue_job(service, run, "checkpoint", asked, caller.name, idempotency_key, response)
