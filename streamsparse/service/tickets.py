"""Signed, short-lived permissions: links for places that cannot send a token, and the two steps of a deletion."""

from __future__ import annotations

import hashlib
import hmac
import time
from datetime import UTC, datetime

TICKET_SECONDS = 300
DELETION_SECONDS = 600


class Signer:
    """Signs what all processes on one database can check.

    A signature is EXPIRY.HMAC-SHA256(secret, purpose, subject, EXPIRY), the expiry in seconds since 1970.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, purpose: str, subject: str, seconds: float) -> tuple[str, datetime]:
        """A signature, and until when it is good."""
        expiry = int(time.time() + seconds)
        return f"{expiry}.{self._mac(purpose, subject, expiry)}", datetime.fromtimestamp(expiry, UTC)

    def holds(self, purpose: str, subject: str, signature: str) -> bool:
        """Whether this is such a signature, and still good."""
        expiry, _, mac = signature.partition(".")
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) <= 12 and mac.isascii()):
            return False
        return hmac.compare_digest(mac, self._mac(purpose, subject, int(expiry))) and time.time() < int(expiry)

    def _mac(self, purpose: str, subject: str, expiry: int) -> str:
        message = "\n".join((purpose, subject, str(expiry))).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
