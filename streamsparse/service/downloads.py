"""Files on their way out: streamed from the disk, resumable, with digests that prove what arrived.

Range: bytes=A-B, A- or -N      206 of one range; several ranges are answered with the whole (RFC 9110, 14.2)
If-Range, If-None-Match         against a strong ETag, the SHA-256 of what is sent
Repr-Digest                     SHA-256 of the whole (RFC 9530), so that a client can check what it put together
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import anyio
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from streamsparse.service.problems import Refusal

PIECE_BYTES = 256 * 1024


class Source(Protocol):
    """Bytes with a position."""

    def seek(self, position: int, /) -> object:
        """Go on from here."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at least one unless there are none."""

    def close(self) -> object:
        """Give it back."""


@dataclass(frozen=True)
class Part:
    """Bytes from `start` on, `length` of them, of a whole of `size`."""

    start: int
    length: int
    size: int

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.length == self.size

    @property
    def content_range(self) -> str:
        """The header's value."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{self.size}"


@dataclass(frozen=True)
class Download:
    """Something that can be sent.

    Attributes:
        name: that a browser saves it under.
        size: bytes.
        sha256: of all of them, hexadecimal.
        media_type: of the content.
        open: begins to read it.
        close: what `open` needs to be given back, called in any case.
    """

    name: str
    size: int
    sha256: str
    media_type: str
    open: Callable[[], Source]
    close: Callable[[], None] = lambda: None

    @property
    def etag(self) -> str:
        """Strong: equal exactly for equal bytes."""
        return f'"{self.sha256}"'


def parse_range(header: str, size: int) -> Part | None:
    """The part that a Range header asks for; None where it is to be passed over.

    Raises:
        Refusal: 416, nothing of it is there.
    """
    match = re.fullmatch(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*", header, re.ASCII)
    if match is None or match.groups() == ("", ""):
        return None  # other units, several ranges, or no range at all
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        start = size - length
    else:
        start = int(first)
        if last and int(last) < start:
            return None  # not a valid range, so that it is as if there were none
        length = min(int(last) + 1 if last else size, size) - start
    if length <= 0:
        raise Refusal(
            416, "RangeNotSatisfiable", "There is nothing in this range.", expected=f"0 to {size - 1}",
            got=header[:100], headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
        )  # fmt: skip
    return Part(start, length, size)


def respond(request: Request, download: Download) -> Response:
    """The answer to a GET or HEAD of a download.

    Raises:
        Refusal: 416, see `parse_range`.
    """
    headers = _headers(download)
    if _names(request.headers.get("if-none-match", ""), download.etag):
        download.close()
        return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control")})
    part = Part(0, download.size, download.size)
    asked = request.headers.get("range")
    condition = request.headers.get("if-range")
    if asked is not None and (condition is None or condition.strip() == download.etag):
        try:
            part = parse_range(asked, download.size) or part
        except Refusal:
            download.close()
            raise
    partial = asked is not None and not part.whole
    headers["Content-Length"] = str(part.length)
    if partial:
        headers["Content-Range"] = part.content_range
    else:
        headers["Content-Digest"] = headers["Repr-Digest"]
    status = 206 if partial else 200
    if request.method == "HEAD":
        download.close()
        return Response(status_code=200, headers=headers | {"Content-Length": str(download.size)})
    return StreamingResponse(_pieces(download, part), status, headers, media_type=download.media_type)


async def _pieces(download: Download, part: Part) -> AsyncIterator[bytes]:
    """One piece after the other, each read in a thread: memory does not depend on the size."""
    stream: Source | None = None
    try:
        stream = await anyio.to_thread.run_sync(download.open)
        await anyio.to_thread.run_sync(stream.seek, part.start)
        left = part.length
        while left > 0:
            piece = await anyio.to_thread.run_sync(stream.read, min(left, PIECE_BYTES))
            if not piece:
                raise OSError("a file became shorter while it was sent")  # the client sees a broken transfer
            left -= len(piece)
            yield piece
    finally:
        if stream is not None:
            stream.close()
        with suppress(OSError):
            download.close()


def _headers(download: Download) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(download.sha256)).decode()
    return {
        "ETag": download.etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache",  # kept by clients, and asked for with the ETag each time
        "Content-Disposition": f'attachment; filename="{download.name}"',
        "Content-Type": download.media_type,
    }


def _names(header: str, etag: str) -> bool:
    """Whether an If-None-Match header names this ETag."""
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]
