"""Jobs: submit, watch, cancel, retry."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from streamsparse.service.context import Reader, Service, Services, Submitter
from streamsparse.service.jobs.queue import FINISHED, Job
from streamsparse.service.jobs.submission import Submission, submit
from streamsparse.service.problems import Refusal, not_found
from streamsparse.service.roots import require_known_model
from streamsparse.service.routes.names import JobId, RunName, problems
from streamsparse.service.schemas.jobs import JobPage, JobRequest, JobView, State
from streamsparse.service.schemas.names import Body
from streamsparse.service.views import job_view
from streamsparse.service.worker import BUILDS_MODEL
from streamsparse.solve import parse_budget

router = APIRouter(prefix="/api/v1", tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,200}$",
        description="A text of your own: the same request with the same key is the same job, however often sent.",
    ),
]  # fmt: skip
_STREAM: dict[int | str, Any] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events."}
}


@router.post(
    "/runs/{run}/jobs", status_code=202, summary="Submit a job", response_model=JobView,
    responses=problems(409, 413, 415),
)  # fmt: skip
def submit_job(
    run: RunName,
    job: JobRequest,
    service: Services,
    caller: Submitter,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Queue a job on a run. Jobs of one run are done one after the other.

    Stages resume: a job that is cancelled, killed or fails loses nothing that was committed.
    """
    return queue_job(service, run, job.kind, job.parameters, caller.name, idempotency_key, response)


def queue_job(
    service: Service, run: str, kind: str, parameters: Body, who: str, key: str | None, response: Response
) -> JobView:
    """Check what can be checked at once, and queue.

    Raises:
        Refusal, StreamsparseError: no such run, a model that is not of a registry, a budget that does not parse,
            data that the server does not have.
    """
    named = service.root.find(run)
    if kind in BUILDS_MODEL:
        require_known_model(service.settings, named.run)
    budget = getattr(parameters, "budget", None)
    if budget is not None:
        parse_budget(budget)
    data = getattr(parameters, "data", None)
    if data is not None and data not in service.settings.data:
        raise Refusal(
            422, "UnknownData", "The server has no data set of this name.", got=data, where="parameters.data",
            expected=", ".join(service.settings.data) or "a server started with --data NAME=SPEC",
        )  # fmt: skip
    asked = parameters.model_dump(mode="json")
    submission = Submission(named.name, named.url, kind, asked, who, key)
    found, new = submit(service.queue, submission, service.settings.limits.queued_jobs)
    response.headers["Location"] = f"/api/v1/jobs/{found['id']}"
    response.status_code = 202 if new else 200
    return job_view(found)


@router.get("/jobs", summary="List jobs", responses=problems())
def list_jobs(
    service: Services,
    _: Reader,
    run: Annotated[str | None, Query(max_length=100, description="Of this run alone.")] = None,
    state: Annotated[State | None, Query(description="In this state alone.")] = None,
    before: Annotated[int | None, Query(ge=0, le=2**53, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """The latest first."""
    found = service.queue.page(run=run, state=state, before=before, limit=limit)
    more = str(found[-1]["number"]) if len(found) == limit else None
    return JobPage(jobs=[job_view(job) for job in found], next=more)


@router.get("/jobs/{job}", summary="Show a job", responses=problems())
def show_job(job: JobId, service: Services, _: Reader) -> JobView:
    """Its state, how far it is, and what it found or why it failed."""
    return job_view(_found(service, job))


@router.post("/jobs/{job}/cancel", summary="Cancel a job", responses=problems(409, 415))
def cancel_job(job: JobId, service: Services, _: Submitter) -> JobView:
    """A running job's process is ended; the run stays as it was committed, and can be resumed."""
    found = service.queue.cancel(job)
    if found is None:
        raise not_found("job", job)
    if found["state"] in ("succeeded", "failed"):
        raise Refusal(409, "JobEnded", "The job has ended.", got=found["state"], expected="an active job")
    return job_view(found)


@router.post("/jobs/{job}/retry", summary="Try a job again", responses=problems(409, 415))
def retry_job(job: JobId, service: Services, _: Submitter) -> JobView:
    """Queue a job again that failed or was cancelled, or let one that waits go on at once."""
    before = _found(service, job)
    if before["state"] not in ("failed", "cancelled", "waiting"):
        raise Refusal(
            409, "JobNotEnded", "There is nothing to try again.", got=before["state"],
            expected="a job that failed, was cancelled, or waits",
        )  # fmt: skip
    return job_view(service.queue.retry(job) or before)


@router.get(
    "/jobs/{job}/log", summary="A job's log", response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problems()},
)  # fmt: skip
def job_log(job: JobId, service: Services, _: Reader) -> Response:
    """The end of what its process wrote to standard error, at most 64 KiB."""
    text = str(_found(service, job)["log"])
    return Response(text.encode("utf-8", "replace"), media_type="text/plain; charset=utf-8")


@router.get(
    "/jobs/{job}/events", summary="Follow a job", response_class=Response,
    responses={**_STREAM, 204: {"description": "The job has ended, and all its events are known."}, **problems()},
)  # fmt: skip
async def job_events(
    job: JobId,
    request: Request,
    service: Services,
    _: Reader,
    last_event_id: Annotated[
        int | None,
        Header(alias="Last-Event-ID", ge=0, le=2**53, description="Go on after this event; browsers send it."),
    ] = None,
    after: Annotated[int, Query(ge=0, le=2**53, description="The same, for those that cannot send headers.")] = 0,
) -> Response:
    """Server-sent events of a job from its first, until it has ended.

    Types: state, progress, notice, reused, finished; the data is a JSON object with `time` and what belongs to the
    type. A stream that breaks off is resumed with `Last-Event-ID`; none is lost and none comes twice.

    Old events are not kept for ever: 10,000 of a job that runs, 500 of one that has ended, and after 30 days (or
    `serve --event-days`) the last alone. Whoever asks for one that is gone gets a `reset` first, whose data says
    the number of the `first` that is kept: look at the job itself then, and go on with what follows.
    """
    from anyio.to_thread import run_sync

    found = await run_sync(_found, service, job)
    start = after if last_event_id is None else last_event_id
    if found["state"] in FINISHED and start >= await run_sync(service.hub.last, job):
        return Response(status_code=204)
    if service.hub.listeners >= service.settings.limits.streams:
        title = "Too many event streams are open."
        raise Refusal(503, "TooManyStreams", title, headers={"Retry-After": "10"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(service.hub.listen(job, start), media_type="text/event-stream", headers=headers)


def _found(service: Service, job: str) -> Job:
    found = service.queue.find(job)
    if found is None:
        raise not_found("job", job, "GET /api/v1/jobs lists them")
    return found
