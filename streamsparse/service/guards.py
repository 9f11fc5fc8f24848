"""What every request passes before any route sees it, and what every answer carries.

host known? ─> who asks? ─> rate ─> origin our own? ─> type and size of the body ─> route ─> headers, log
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamsparse.service import bodies
from streamsparse.service.auth import LOCAL, Caller
from streamsparse.service.context import Service
from streamsparse.service.problems import Refusal, answer

OPEN_PATHS = ("/healthz", "/readyz")
"""Asked by machines that watch the service: no token, no rate."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""For everything but a report, which brings its own."""

_log = logging.getLogger(__name__)


class Guards:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request."""
        if scope["type"] == "websocket":  # there are none here
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(message)
                self._service.metrics.request(_method(scope), _route(scope), status, time.perf_counter() - started)
            await send(message)

        try:
            receive = await self._admit(scope, receive)
        except Refusal as refusal:
            response = answer(refusal.problem, refusal.status, refusal.headers)
            await response(scope, receive, send_on)
        else:
            await self._app(scope, receive, send_on)
        finally:
            if scope["path"] not in OPEN_PATHS:
                _log.info("request", extra=_about(scope, status, time.perf_counter() - started))

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """
        Raises:
            Refusal: the request goes no further.
        """
        headers = Headers(scope=scope)
        limits = self._service.settings.limits
        self._check_host(headers)
        caller = self._caller(scope, headers)
        scope.setdefault("state", {})["caller"] = caller
        if scope["path"] not in OPEN_PATHS:
            self._check_rate(scope, caller)
        if scope["method"] not in bodies.CHANGING:
            return receive
        _check_origin(scope, headers)
        bodies.check_media_type(scope, headers)
        if bodies.is_upload(scope):
            bodies.check_length(headers, limits.upload_bytes)
            return receive
        bodies.check_length(headers, limits.body_bytes)
        return await bodies.read_json_body(receive, limits)

    def _check_host(self, headers: Headers) -> None:
        accepted = self._service.settings.accepted_hosts
        hosts = headers.getlist("host")
        name = host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or (accepted is not None and name not in accepted):
            raise Refusal(
                421, "UnknownHost", "This service is not known under this name.", got=ascii(hosts)[:200],
                where="Host", remedy="use the address it was started with, or start it with --public-host NAME",
            )  # fmt: skip

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        service = self._service
        if service.tokens is None:
            return LOCAL
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            return service.tokens.caller(token.strip())
        ticket = _ticket(scope)
        if ticket is not None and service.signer.holds("ticket", scope["path"], ticket):
            return Caller("ticket", frozenset({"read"}))
        return None

    def _check_rate(self, scope: Scope, caller: Caller | None) -> None:
        client = scope.get("client") or ("unknown", 0)
        known = caller is not None and caller is not LOCAL and caller.name != "ticket"
        key = f"token {caller.name}" if known and caller is not None else f"address {client[0]}"
        wait = self._service.rates.wait_seconds(key)
        if wait > 0:
            headers = {"Retry-After": str(max(1, round(wait)))}
            raise Refusal(429, "TooManyRequests", "Too many requests.", headers=headers, remedy="ask less often")

    @staticmethod
    def _add_headers(message: Message) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in SECURITY_HEADERS.items():
            headers[name] = value
        headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
        headers.setdefault("Cache-Control", "no-store")


def _ticket(scope: Scope) -> str | None:
    """The ticket in the query of a request that only reads."""
    if scope["method"] not in ("GET", "HEAD"):
        return None
    try:
        given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20).get("ticket", [])
    except ValueError:
        return None
    return given[0] if len(given) == 1 else None


def host_name(host: str) -> str | None:
    """`[::1]:80` -> `[::1]`, `localhost:80` -> `localhost`; None for what is no host."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, "0"
    plain = name.isascii() and name and not set(name) & set("/\\@?# \t")
    return name.lower() if plain and port.isdecimal() else None


def _check_origin(scope: Scope, headers: Headers) -> None:
    """Browsers say which site a changing request comes from; only our own pages may send one."""
    origin, host = headers.get("origin"), headers.get("host", "")
    foreign = origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
    if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refusal(
            403, "ForeignOrigin", "A page of another site may not change anything here.",
            got=ascii(origin)[:200], where="Origin",
        )  # fmt: skip


def _route(scope: Scope) -> str:
    """The template of the path, such as /api/v1/runs/{run}."""
    return str(getattr(scope.get("route"), "path", "none"))


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "HEAD", *bodies.CHANGING, "OPTIONS") else "other"


def _about(scope: Scope, status: int, seconds: float) -> Mapping[str, Any]:
    """For the log: no query string, which may hold a ticket, and no header."""
    caller = scope.get("state", {}).get("caller")
    return {
        "method": _method(scope), "path": scope["path"][:300], "status": status,
        "milliseconds": round(1e3 * seconds, 1), "caller": None if caller is None else caller.name,
        "address": (scope.get("client") or (None,))[0],
    }  # fmt: skip
