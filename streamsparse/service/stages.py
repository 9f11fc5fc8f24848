"""What each kind of job does with the library, inside a job's own process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from streamsparse.errors import UsageError
from streamsparse.events import OnEvent
from streamsparse.executors import Execution
from streamsparse.intake.captured import read_captured
from streamsparse.service.cluster_watch import GiveUp, watched_cluster
from streamsparse.service.planning import constraints_of
from streamsparse.service.schemas import jobs as schemas
from streamsparse.service.schemas.budgets import Choice
from streamsparse.solve import Constraints, SolveSettings, solve, trade_off
from streamsparse.solve.stage import find_fronts
from streamsparse.store import Run, layout
from streamsparse.types import Solution


def perform(job: Mapping[str, Any], on_event: OnEvent, give_up: GiveUp) -> dict[str, Any]:
    """Do a job.

    Args:
        job: kind, run (path or URL), name (of the run in the API), parameters, and of the service's settings: data,
            data_root, scheduler, cluster_seconds, threads.
        on_event: hears of progress.
        give_up: ends this process when the cluster is gone; see `cluster_watch`.

    Returns:
        what it found, as JSON values.

    Raises:
        StreamsparseError: as the stages do.
    """
    _use_threads(job["threads"])
    run = Run.at(job["run"])
    found = _STAGES[job["kind"]](run, {**job, "give_up": give_up}, on_event)
    return dict(json.loads(json.dumps(_plain(found))))


def _accumulate(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    from streamsparse.accumulate import AccumulateSettings, accumulate

    asked = schemas.AccumulateParameters.model_validate(job["parameters"])
    settings = AccumulateSettings(asked.folds, asked.products, asked.memory_limit_bytes)
    with _watched(job):
        return accumulate(run, settings=settings, scheduler=job["scheduler"], on_event=on_event)


def _fronts(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    constraints = constraints_of(schemas.FrontsParameters.model_validate(job["parameters"]))
    _find_fronts(run, job, constraints, on_event)
    points, kind = trade_off(run, points=2, constraints=constraints, on_event=on_event)
    return {"loss_kind": kind, "points": points}


def _solve(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    return _summary(_solved(run, job, schemas.SolveParameters.model_validate(job["parameters"]), on_event))


def _write(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    from streamsparse.write.stage import write

    asked = schemas.WriteParameters.model_validate(job["parameters"])
    written = write(run, name=asked.name, formats=asked.formats, on_event=on_event)
    return {name: value for name, value in asdict(written).items() if name != "location"}


def _checkpoint(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    asked = schemas.CheckpointParameters.model_validate(job["parameters"])
    solution = _solved(run, job, asked, on_event)
    parameters = {"name": asked.name, "formats": asked.formats}
    return {**_summary(solution), "checkpoint": _write(run, {"parameters": parameters}, on_event)}


def _evaluate(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    from streamsparse.evaluation import evaluate

    asked = schemas.EvaluateParameters.model_validate(job["parameters"])
    return evaluate(
        run, _data(run, job, asked.data, "test"), name=asked.name, batch_images=asked.batch_images,
        latency_batch_sizes=(1, 32) if asked.latency else (), on_event=on_event,
    )  # fmt: skip


def _sensitivity(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    from streamsparse.sensitivity import measure_sensitivities

    asked = schemas.SensitivityParameters.model_validate(job["parameters"])
    found = measure_sensitivities(
        run, _data(run, job, asked.data, "train"), images=asked.images, by=asked.by,
        batch_images=asked.batch_images, on_event=on_event,
    )  # fmt: skip
    return {"sensitivities": found}


def _verify(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    from streamsparse.verification import verify_run

    return {"problems": verify_run(run, on_event)}


def _report(run: Run, job: Mapping[str, Any], on_event: OnEvent) -> Any:
    """Into a directory of its own, then into the run: the same on a disk and in a bucket."""
    from streamsparse.reporting import report

    with tempfile.TemporaryDirectory() as scratch:
        found = report(run, scratch, shown_as=job["name"], on_event=on_event)
        names = [str(path.relative_to(scratch)) for path in found.paths]
        with run.lock():
            for name in names:
                run.documents.write(f"{layout.REPORT}/{name}", (Path(scratch) / name).read_bytes())
    return {"files": names}


_STAGES: dict[str, Callable[[Run, Mapping[str, Any], OnEvent], Any]] = {
    "accumulate": _accumulate,
    "fronts": _fronts,
    "solve": _solve,
    "write": _write,
    "checkpoint": _checkpoint,
    "evaluate": _evaluate,
    "sensitivity": _sensitivity,
    "verify": _verify,
    "report": _report,
}


def _solved(run: Run, job: Mapping[str, Any], choice: Choice, on_event: OnEvent) -> Solution:
    constraints = constraints_of(choice)
    _find_fronts(run, job, constraints, on_event)
    return solve(
        run, budget=choice.budget, channels=choice.channels, constraints=constraints, settings=SolveSettings(),
        on_event=on_event,
    )  # fmt: skip


def _find_fronts(run: Run, job: Mapping[str, Any], constraints: Constraints, on_event: OnEvent) -> None:
    """What takes long, on the cluster if there is one; what follows finds the fronts in the run."""
    if job["scheduler"] is not None:
        execution = Execution(scheduler=job["scheduler"])
        with run.lock(), _watched(job):
            find_fronts(run, read_captured(run), SolveSettings(), on_event, constraints, execution)


def _watched(job: Mapping[str, Any]) -> AbstractContextManager[None]:
    return watched_cluster(job["scheduler"], job["cluster_seconds"], job["give_up"])


def _summary(solution: Solution) -> dict[str, Any]:
    """A solution without the kept positions."""
    plan = solution.plan
    return {
        "budget": plan.budget, "counts": plan.counts, "costs": plan.costs, "original_costs": plan.original_costs,
        "sparsity": plan.sparsity, "predicted_loss": sum(plan.predicted_losses.values()),
        "loss_kind": plan.loss_kind, "mode": solution.mode, "layers": solution.layers,
    }  # fmt: skip


def _data(run: Run, job: Mapping[str, Any], name: str, split: str) -> Any:
    """A data set of the server's, preprocessed as the run's images were."""
    from streamsparse.intake.data import open_data
    from streamsparse.intake.preprocessing import choose_preprocessing

    if name not in job["data"]:
        raise UsageError("The server has no data set of this name.", expected=", ".join(job["data"]), got=name)
    about = run.manifest()
    options = about["data"].get("options") or {}
    model = about["model"]["spec"] or ""
    preprocessing = choose_preprocessing(model, normalize=options.get("normalize"), size=options.get("size"))
    # the specification is the operator's own, so that its code is trusted
    return open_data(
        job["data"][name], data_root=job["data_root"], split=split, preprocessing=preprocessing, trust_code=True
    )


def _use_threads(threads: int | None) -> None:
    """Limit torch's and BLAS's threads: several jobs share the machine."""
    if threads is None:
        return
    import numpy  # noqa: F401  its BLAS must be loaded to be limited
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    torch.set_num_threads(threads)


def _plain(value: Any) -> Any:
    """JSON values of dataclasses, mappings, sequences and paths; numbers that JSON lacks become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
