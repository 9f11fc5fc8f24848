"""About the service itself, and links for places that cannot send a token."""

from __future__ import annotations

from importlib.metadata import version
from typing import get_args

from fastapi import APIRouter

from streamsparse.service.auth import SCOPES
from streamsparse.service.context import Reader, Services
from streamsparse.service.routes.names import problems
from streamsparse.service.schemas.jobs import Kind
from streamsparse.service.schemas.runs import ServiceView, Ticket, TicketRequest
from streamsparse.service.tickets import TICKET_SECONDS

router = APIRouter(prefix="/api/v1", tags=["service"])


@router.get("/service", summary="What this server offers", responses=problems())
async def about(service: Services, caller: Reader) -> ServiceView:
    """Kinds of jobs, data sets, limits, and what the caller may do."""
    return ServiceView(
        version=version("streamsparse"),
        kinds=list(get_args(Kind)),
        data=sorted(service.settings.data),
        authentication="none" if service.tokens is None else "bearer",
        scopes=[scope for scope in SCOPES if caller.may(scope)],
        scheduler=service.settings.scheduler is not None,
        upload_limit_bytes=service.settings.limits.upload_bytes,
    )


@router.post("/tickets", status_code=201, summary="A link that needs no token", responses=problems(413, 415))
async def ticket(asked: TicketRequest, service: Services, _: Reader) -> Ticket:
    """For an <iframe> or a download by the browser: good for minutes, and to read this one path."""
    signature, expires = service.signer.sign("ticket", asked.path, TICKET_SECONDS)
    return Ticket(url=f"{asked.path}?ticket={signature}", expires=expires)
