"""Everything a service is made of, built once, and how routes get at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from sqlalchemy import Engine

from streamsparse.service.auth import Caller, Scope, Tokens
from streamsparse.service.checkpoints import Digests
from streamsparse.service.jobs.database import open_database, shared_secret
from streamsparse.service.jobs.hub import Hub
from streamsparse.service.jobs.queue import Queue
from streamsparse.service.limits import RateLimit
from streamsparse.service.metrics import Metrics
from streamsparse.service.planning import Planner
from streamsparse.service.problems import Refusal
from streamsparse.service.roots import Root
from streamsparse.service.settings import Settings
from streamsparse.service.tickets import Signer
from streamsparse.service.worker import Worker


@dataclass(frozen=True)
class Service:
    """The parts of a running service."""

    settings: Settings
    engine: Engine
    root: Root
    queue: Queue
    hub: Hub
    worker: Worker
    planner: Planner
    digests: Digests
    tokens: Tokens | None
    signer: Signer
    rates: RateLimit
    metrics: Metrics


def build_service(settings: Settings) -> Service:
    """Open the database and put the parts together; nothing runs yet.

    Raises:
        UsageError, StorageError: the database or the tokens cannot be opened.
    """
    if settings.directory is not None:
        settings.directory.mkdir(parents=True, exist_ok=True)
    tokens = None if settings.tokens is None else Tokens(settings.tokens)
    engine = open_database(settings.database_url)
    root = Root(settings, engine)
    queue = Queue(engine, settings.timing, settings.retention)
    hub = Hub(engine, settings.timing.poll_seconds)
    metrics = Metrics(queue.counts, lambda: hub.listeners)
    return Service(
        settings=settings,
        engine=engine,
        root=root,
        queue=queue,
        hub=hub,
        worker=Worker(settings, queue, root, metrics.job_ended),
        planner=Planner(),
        digests=Digests(),
        tokens=tokens,
        signer=Signer(shared_secret(engine, "signer")),
        rates=RateLimit(settings.limits.requests_per_second, settings.limits.burst),
        metrics=metrics,
    )


def get_service(request: Request) -> Service:
    """The service that a request is for."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


_bearer = HTTPBearer(auto_error=False, description="A token of the server's --tokens file.")


def allowed(scope: Scope) -> Callable[..., Caller]:
    """A dependency that lets those pass who have a scope.

    The dependency raises a Refusal: 401 without a token that is known, 403 without the scope.
    """

    def check(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
        caller = request.state.caller
        if caller is None:
            raise Refusal(
                401, "Unauthorized", "A bearer token is needed.", headers={"WWW-Authenticate": "Bearer"},
                where="Authorization", remedy="ask whoever runs this service for a token",
            )  # fmt: skip
        assert isinstance(caller, Caller)
        if not caller.may(scope):
            got = ", ".join(sorted(caller.scopes))
            raise Refusal(403, "Forbidden", "This token may not do that.", expected=f"scope {scope}", got=got)
        return caller

    return check


Services = Annotated[Service, Depends(get_service)]
Reader = Annotated[Caller, Depends(allowed("read"))]
Submitter = Annotated[Caller, Depends(allowed("submit"))]
Administrator = Annotated[Caller, Depends(allowed("admin"))]
