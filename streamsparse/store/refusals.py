"""What an S3 server, or its absence, says, as a StorageError. obstore tells it in text only.

The codes are those of the S3 API reference, "List of error codes", and of the servers that speak it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from streamsparse.errors import StorageError

REQUEST_FAILED = "Error performing"
"""How obstore's messages about a request begin."""

_AGAIN = "then run the same command again: it resumes"
_KEYS = f"check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, {_AGAIN}"
_TOKEN = f"renew AWS_SESSION_TOKEN and the keys that belong to it, {_AGAIN}"
_ROOM = f"free space on the server, raise the quota or choose another RUN, {_AGAIN}"
_REGION = f"set AWS_REGION to the bucket's region (and AWS_ENDPOINT_URL to its server), {_AGAIN}"
_LATER = f"wait until the server is less busy, {_AGAIN}"

_BY_CODE = {
    "NoSuchBucket": ("The bucket does not exist.", "create it, or check the name in RUN and AWS_ENDPOINT_URL"),
    "InvalidBucketName": ("The server knows no such bucket name.", "check the name in RUN"),
    "InvalidAccessKeyId": ("The object store does not know the access key.", _KEYS),
    "SignatureDoesNotMatch": ("The object store does not accept the secret key.", _KEYS),
    "ExpiredToken": ("The session token has expired.", _TOKEN),
    "InvalidToken": ("The object store does not accept the session token.", _TOKEN),
    "RequestTimeTooSkewed": ("The clocks of this machine and the server differ.", f"set this clock, {_AGAIN}"),
    "PermanentRedirect": ("The bucket lies in another region.", _REGION),
    "AuthorizationHeaderMalformed": ("The bucket lies in another region.", _REGION),
    "QuotaExceeded": ("The object store is full.", _ROOM),
    "XMinioStorageFull": ("The object store is full.", _ROOM),
    "SlowDown": ("The object store is too busy.", _LATER),
}
_BY_STATUS = {
    301: _BY_CODE["PermanentRedirect"],
    403: (
        "The object store refuses access.",
        f"allow these keys GetObject, PutObject, DeleteObject and ListBucket there, {_AGAIN}",
    ),
    503: _BY_CODE["SlowDown"],
    507: _BY_CODE["QuotaExceeded"],
}
_NO_KEYS = (
    "There are no credentials for the object store.",
    f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role, {_AGAIN}",
)
_SILENCE = (
    "The object store cannot be reached.",
    f"check that the server runs and that AWS_ENDPOINT_URL names it, {_AGAIN}",
)
_OTHER = ("The object store did not do what was asked.", f"look at the server's log, {_AGAIN}")
_ROLE_ADDRESSES = ("169.254.169.254", "169.254.170.2")
"""Where machines and containers of AWS ask for their role's keys."""


def bucket_error(error: Exception, where: str) -> StorageError:
    """The StorageError for an exception of obstore; it names the server, never a key."""
    text = str(error).split("\n\nDebug source")[0]
    status = _number(re.search(r"status code: (\d{3})", text))
    code = _text(re.search(r"<Code>(\w+)</Code>", text))
    server = _server(text)
    summary, remedy = _verdict(text, status, code)
    return StorageError(
        summary,
        got=", ".join(_answer(text, status, code)) or text.splitlines()[0],
        where=f"{where} at {server}" if server else where,
        remedy=remedy,
    )


def _verdict(text: str, status: int | None, code: str | None) -> tuple[str, str]:
    if any(address in text for address in _ROLE_ADDRESSES):
        return _NO_KEYS
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status is None:
        return _SILENCE if REQUEST_FAILED in text or "HTTP error" in text else _OTHER
    return _BY_STATUS.get(status, _OTHER)


def _answer(text: str, status: int | None, code: str | None) -> Iterator[str]:
    """What the server said, without the parts of its answer that repeat our request."""
    if status is not None:
        yield f"status {status}"
    if code is not None:
        yield code
    message = _text(re.search(r"<Message>([^<]*)</Message>", text))
    if message:
        yield message
    elif status is None:
        failure = re.search(r"(?:in|after) ([\d.]+m?s), after (\d+) retries", text)
        cause = text.rpartition(" - ")[2] if " - " in text else None
        yield from (part for part in (cause, failure and f"{failure[2]} retries in {failure[1]}") if part)


def _server(text: str) -> str | None:
    """Scheme, host and port of the request, without user and password."""
    return _text(re.search(r"(https?://)(?:[^/\s@]*@)?([^/\s]+)", text), 1, 2)


def _number(match: re.Match[str] | None) -> int | None:
    return None if match is None else int(match[1])


def _text(match: re.Match[str] | None, *groups: int) -> str | None:
    return None if match is None else "".join(match[group] for group in groups or (1,))
