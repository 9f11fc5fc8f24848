"""The application: routes, guards, the queue's worker, the event hub and the dashboard in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from streamsparse.errors import StreamsparseError
from streamsparse.service import problems
from streamsparse.service.context import Service, build_service
from streamsparse.service.dashboard import mount_dashboard
from streamsparse.service.guards import Guards
from streamsparse.service.routes import budgets, checkpoints, health, jobs, runs, service
from streamsparse.service.settings import Settings

_ABOUT = """Runs of streamsparse over HTTP: submit jobs, watch them, choose a budget, download checkpoints.

Errors are `application/problem+json` with what was expected, what was got, where, and what to do. On a server with
tokens every request but the health checks carries `Authorization: Bearer TOKEN`; scopes: `read`, `submit` (jobs,
registrations, uploads), `admin` (deletions), each including those before it."""


def create_app(settings: Settings) -> FastAPI:
    """The service's application; its worker and its hub run while it does.

    Raises:
        UsageError, StorageError: see `build_service`.
    """
    parts = build_service(settings)
    app = FastAPI(
        title="streamsparse",
        version=version("streamsparse"),
        description=_ABOUT,
        lifespan=_running,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = parts
    for module in (health, service, runs, jobs, budgets, checkpoints):
        app.include_router(module.router)
    app.add_exception_handler(problems.Refusal, problems.on_refusal)
    app.add_exception_handler(StreamsparseError, problems.on_library_error)
    app.add_exception_handler(HTTPException, problems.on_http_exception)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(Exception, problems.on_unexpected)
    mount_dashboard(app)
    app.add_middleware(Guards, service=parts)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _running(app: FastAPI) -> AsyncIterator[None]:
    parts: Service = app.state.service
    parts.hub.start()
    parts.worker.start()
    try:
        yield
    finally:
        await parts.hub.close()
        await anyio.to_thread.run_sync(parts.worker.stop)
        parts.engine.dispose()


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, in which problems have their own media type."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                for response in operation["responses"].values():
                    _name_problem(response.get("content", {}))
        app.openapi_schema = found
    return app.openapi_schema


def _name_problem(content: dict[str, Any]) -> None:
    schema = content.get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/Problem"):
        content[problems.MEDIA_TYPE] = content.pop("application/json")
