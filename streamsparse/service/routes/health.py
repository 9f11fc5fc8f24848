"""For machines that watch: alive, ready, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from streamsparse.service import metrics
from streamsparse.service.context import Reader, Services
from streamsparse.service.problems import Refusal
from streamsparse.service.routes.names import problems

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?", responses=problems())
async def alive() -> dict[str, str]:
    """Answers as long as the event loop turns; looks at nothing else."""
    return {"status": "alive"}


@router.get("/readyz", summary="Can it serve?", responses=problems())
def ready(service: Services) -> dict[str, str]:
    """Whether the database and ROOT can be reached."""
    try:
        with service.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise Refusal(503, "NotReady", "The database does not answer.", got=type(error).__name__) from error
    service.root.reachable()
    return {"status": "ready"}


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {metrics.MEDIA_TYPE.partition(";")[0]: {}}}, **problems()},
)
def measured(service: Services, _: Reader) -> Response:
    """Requests, jobs and streams, in Prometheus' text format; needs a token where there are tokens."""
    return Response(service.metrics.text(), media_type=metrics.MEDIA_TYPE)
