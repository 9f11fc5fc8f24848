"""Bodies of requests: bounded while they arrive, and JSON only as deep as any request needs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import anyio
from starlette.types import Message, Receive, Scope

from streamsparse.service.problems import Refusal
from streamsparse.service.settings import Limits

JSON = "application/json"
ARCHIVES = ("application/x-tar", "application/gzip", "application/zip", "application/octet-stream")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
CHANGING = ("POST", "PUT", "PATCH", "DELETE")


def check_media_type(scope: Scope, headers: Mapping[str, str]) -> None:
    """A form of another site can send forms and plain text, but not these types.

    Raises:
        Refusal: 415.
    """
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    allowed = ARCHIVES if is_upload(scope) else (JSON,)
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if scope["method"] in CHANGING and (given or has_body) and given not in allowed:
        raise Refusal(
            415, "UnsupportedMediaType", "A body of this type is not taken.", expected=" | ".join(allowed),
            got=ascii(given)[:100], where="Content-Type",
        )  # fmt: skip


def check_length(headers: Mapping[str, str], most: int) -> None:
    """
    Raises:
        Refusal: 413, or 400 for a length that is none.
    """
    length = headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdecimal()):
        raise Refusal(400, "BadRequest", "This length does not parse.", where="Content-Length")
    if length is not None and (len(length) > 15 or int(length) > most):
        raise too_large(most)


def is_upload(scope: Scope) -> bool:
    """Whether the body is an archive, which its route reads piece by piece."""
    return bool(scope["method"] == "PUT" and scope["path"].endswith("/archive"))


async def read_json_body(receive: Receive, limits: Limits) -> Receive:
    """Read a small body whole, check it, and give it again.

    Raises:
        Refusal: 408 too slow, 413 too large, 400 nested too deeply.
    """
    try:
        with anyio.fail_after(limits.body_seconds):
            body = await _read(receive, limits.body_bytes)
    except TimeoutError as error:
        raise Refusal(408, "TooSlow", "The body did not arrive in time.", where="the body") from error
    if depth_of(body, limits.body_depth) > limits.body_depth:
        title, expected = "The body is nested too deeply.", f"at most {limits.body_depth} levels"
        raise Refusal(400, "BadRequest", title, expected=expected, where="the body")
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            raise too_large(most)
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


def depth_of(body: bytes, enough: int) -> int:
    """Nesting of a JSON text, looked at no further than it takes to exceed `enough`."""
    if body.count(b"[") + body.count(b"{") <= enough:
        return 0
    depth = deepest = 0
    for byte in _STRING.sub(b"", body):
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, depth)
        if deepest > enough:
            break
    return deepest


def too_large(most: int) -> Refusal:
    """413."""
    return Refusal(413, "TooLarge", "The body is too large.", expected=f"at most {most} bytes", where="the body")
