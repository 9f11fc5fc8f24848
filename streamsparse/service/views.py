"""From the library's and the database's objects to what the API answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from streamsparse.errors import StageMissingError, StreamsparseError
from streamsparse.inspection import inspect_run
from streamsparse.intake.captured import Captured
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.network.observation import whole_groups
from streamsparse.service.context import Service
from streamsparse.service.jobs.database import moment
from streamsparse.service.jobs.queue import Job
from streamsparse.service.planning import Planned
from streamsparse.service.problems import problem_of, without_paths
from streamsparse.service.roots import NamedRun
from streamsparse.service.schemas.budgets import (
    CostsView,
    FrontPoint,
    PlannedGroup,
    PlannedLayer,
    PlanView,
)
from streamsparse.service.schemas.jobs import JobView
from streamsparse.service.schemas.runs import Begun, GroupView, RunSummary, RunView, StageView, Verification
from streamsparse.solve import NetworkPoint
from streamsparse.store import Run, layout
from streamsparse.store.solution import read_solution
from streamsparse.types import Costs

_BEGUN = {"accumulate": "statistics", "solve": "solution/fronts", "weights": "solution/weights"}


def job_view(job: Job) -> JobView:
    """A row of the table of jobs."""
    told = ("id", "run", "kind", "parameters", "state", "reason", "error", "result", "progress", "attempts")
    return JobView(
        **{name: job[name] for name in told},
        submitted_by=job["submitted_by"],
        created=moment(job["created"]) or datetime.now(UTC),
        started=moment(job["started"]),
        finished=moment(job["finished"]),
        next_attempt=moment(job["not_before"]) if job["state"] == "waiting" else None,
    )


def run_summary(service: Service, name: str, active_jobs: int) -> RunSummary:
    """A run in the list: little is read, and a run that cannot be read is shown as such."""
    named = service.root.find(name)
    try:
        manifest = named.run.manifest()
        stages: dict[str, Begun] = {"capture": "begun"}
        stages.update({stage: _begun(named.run, prefix) for stage, prefix in _BEGUN.items()})
        return RunSummary(
            id=name,
            state="readable",
            registered=named.registered,
            created=str(manifest["created"]),
            model=str(manifest["model"]["class"]),
            architecture=manifest["model"].get("spec"),
            images=int(manifest["data"]["images"]),
            stages=stages,
            checkpoints=named.run.documents.names("checkpoints"),
            active_jobs=active_jobs,
        )
    except (StreamsparseError, KeyError, TypeError, ValueError) as error:
        if not isinstance(error, StreamsparseError):
            error = StreamsparseError("The run's manifest is damaged.", got=repr(error))
        problem = without_paths(problem_of(error), service.root.directory)
        return RunSummary(
            id=name, state="unreadable", problem=problem, registered=named.registered, active_jobs=active_jobs
        )


def run_view(service: Service, named: NamedRun) -> RunView:
    """What a run holds.

    Raises:
        SchemaVersionError, CorruptDataError: it is not readable.
    """
    about = inspect_run(named.run)
    captured = service.planner.captured(named.run)
    whole = whole_groups(captured.graph, captured.manifest["layers"])
    return RunView(
        id=named.name,
        registered=named.registered,
        manifest=json.loads(json.dumps(about["manifest"])),
        stages=[StageView(**stage) for stage in about["stages"]],
        groups=groups_of(captured, whole),
        costs=costs_view(captured.costs.costs({})),
        solution=_solution(named.run),
        checkpoints=named.run.documents.names("checkpoints"),
        has_report=report_key(named.run) is not None,
        verification=_verification(service, named),
    )


def groups_of(captured: Captured, whole: Mapping[str, str]) -> list[GroupView]:
    """Every group of channels, in order."""
    return [
        GroupView(
            name=group.name,
            size=group.size,
            whole=whole.get(group.name),
            layers=[consumer.layer for consumer in group.consumers],
        )
        for group in captured.graph.groups
    ]


def plan_view(run: str, captured: Captured, planned: Planned, *, positions: bool) -> PlanView:
    """A plan, group by group and layer by layer."""
    plan = planned.plan
    groups = []
    for group in captured.graph.groups:
        kept = plan.keep.get(group.name)
        groups.append(
            PlannedGroup(
                name=group.name,
                size=group.size,
                kept=group.size if kept is None else len(kept),
                predicted_error=plan.predicted_errors.get(group.name),
                predicted_loss=plan.predicted_losses.get(group.name),
                method=plan.methods.get(group.name),
                whole=planned.whole.get(group.name),
                positions=list(range(group.size) if kept is None else kept) if positions else None,
            )
        )
    layers = [
        PlannedLayer(
            layer=one.layer, inputs=one.inputs, inputs_kept=one.inputs_kept, outputs=one.outputs,
            outputs_kept=one.outputs_kept, parameters=one.costs.parameters,
            original_parameters=one.original_costs.parameters, macs=one.costs.macs,
            original_macs=one.original_costs.macs,
        )
        for one in planned.layers
    ]  # fmt: skip
    return PlanView(
        run=run,
        budget=plan.budget,
        costs=costs_view(plan.costs),
        original_costs=costs_view(plan.original_costs),
        sparsity=plan.sparsity,
        predicted_loss=sum(plan.predicted_losses.values()),
        loss_kind=plan.loss_kind,
        predicted_seconds=plan.predicted_seconds,
        original_seconds=planned.original_seconds,
        groups=groups,
        layers=layers,
    )


def point_view(point: NetworkPoint, latencies: LatencyModel | None = None) -> FrontPoint:
    """A point of the network's front."""
    return FrontPoint(
        budget=point.budget,
        fraction=point.fraction,
        costs=costs_view(point.costs),
        predicted_loss=point.predicted_loss,
        counts=point.counts,
        predicted_seconds=None if latencies is None else float(latencies.seconds(point.counts)),
    )


def costs_view(costs: Costs) -> CostsView:
    """Parameters, MACs and bytes."""
    return CostsView(parameters=costs.parameters, macs=costs.macs, bytes=costs.bytes)


def report_key(run: Run) -> str | None:
    """Where the run's HTML report lies, if it has one."""
    names = [name for name in run.documents.names(layout.REPORT) if name.endswith(".html")]
    return f"{layout.REPORT}/{names[0]}" if names else None


def _begun(run: Run, prefix: str) -> Begun:
    return "begun" if run.documents.names(prefix) else "missing"


def _solution(run: Run) -> dict[str, Any] | None:
    try:
        found = read_solution(run)
    except StageMissingError:
        return None
    plan = found.plan
    return {
        "budget": plan.budget,
        "mode": found.mode,
        "recalibrated": bool(found.recalibrated),
        "counts": plan.counts,
        "costs": costs_view(plan.costs).model_dump(),
        "sparsity": plan.sparsity,
        "predicted_loss": sum(plan.predicted_losses.values()),
        "loss_kind": plan.loss_kind,
    }


def _verification(service: Service, named: NamedRun) -> Verification | None:
    job = service.queue.last_succeeded(named.url, "verify")
    finished = None if job is None else moment(job["finished"])
    if job is None or finished is None:
        return None
    return Verification(job=job["id"], finished=finished, problems=job["result"]["problems"])
