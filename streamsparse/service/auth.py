"""Who may do what: bearer tokens with scopes, kept as hashes.

    NAME SCOPES SHA256            one line per token in the tokens' file: `laptop read,submit 9f86d0...`

A token is 256 random bits, so that there is nothing to guess and a plain SHA-256 keeps it as well as a slow hash
would: those are for passwords, which people choose. No salt either: no two tokens are equal, none is in a table.
A lost token is revoked by deleting its line; the file is read again when it changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamsparse.errors import StorageError, UsageError

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "submit", "admin")
_PREFIX = "ssp_"
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99}) ([a-z,]+) ([0-9a-f]{64})")


@dataclass(frozen=True)
class Caller:
    """Whose request it is.

    Attributes:
        name: of the token, "local" where there are none.
        scopes: what it may do; each one includes those before it in `SCOPES`.
    """

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether one of its scopes includes this one."""
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)


LOCAL = Caller("local", frozenset(SCOPES))
"""Everybody, on a service without tokens."""


@dataclass(frozen=True)
class Token:
    """A line of the tokens' file."""

    name: str
    scopes: frozenset[Scope]
    digest: str


class Tokens:
    """The tokens of a file, read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UsageError, StorageError: the file does not parse, or cannot be read.
        """
        self._path, self._lock = path, threading.Lock()
        self._seen = _version(path)
        self._tokens = read_tokens(path)

    def caller(self, token: str) -> Caller | None:
        """Whose token this is. Every hash is compared, each in constant time."""
        digest = token_digest(token)
        found = [one for one in self._current() if secrets.compare_digest(one.digest, digest)]
        return Caller(found[0].name, found[0].scopes) if found else None

    def _current(self) -> tuple[Token, ...]:
        with self._lock:
            version = _version(self._path)
            if version != self._seen:
                self._tokens, self._seen = read_tokens(self._path), version
            return self._tokens


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file.

    Raises:
        UsageError: a line does not parse. Its text is not repeated: somebody may have pasted a token.
        StorageError: the file cannot be read.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError("The tokens' file cannot be read.", got=type(error).__name__, where=path) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UsageError(
                "A line of the tokens' file does not parse.", expected="NAME SCOPE,SCOPE SHA256",
                where=f"{path}, line {number}", remedy="make tokens with `streamsparse serve --new-token NAME`",
            )  # fmt: skip
        found.append(Token(match[1], parse_scopes(match[2]), match[3]))
    return tuple(found)


def new_token(path: Path, name: str, scopes: frozenset[Scope]) -> str:
    """Make a token and add its hash to the file, which only its owner may read; returns the token, once.

    Raises:
        UsageError: the name cannot be, or is taken.
        StorageError: the file cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError("A token cannot have this name.", expected="letters, digits, '.', '_', '-'", got=name)
    if path.exists() and any(token.name == name for token in read_tokens(path)):
        raise UsageError("There is a token of this name.", got=name, where=path, remedy="delete its line first")
    token = f"{_PREFIX}{secrets.token_urlsafe(32)}"
    line = f"{name} {','.join(sorted(scopes, key=SCOPES.index))} {token_digest(token)}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(line)
    except OSError as error:
        raise StorageError("The tokens' file cannot be written.", got=error.strerror, where=path) from error
    return token


def parse_scopes(text: str) -> frozenset[Scope]:
    """`read,submit` -> the scopes.

    Raises:
        UsageError: an unknown one.
    """
    known: dict[str, Scope] = {scope: scope for scope in SCOPES}
    parts = [part.strip() for part in text.split(",")]
    if not all(part in known for part in parts):
        raise UsageError("Unknown scope.", expected=",".join(SCOPES), got=text, where="--scopes")
    return frozenset(known[part] for part in parts)


def token_digest(token: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _version(path: Path) -> tuple[int, int, int]:
    try:
        about = path.stat()
    except OSError:
        return (0, 0, 0)
    return about.st_mtime_ns, about.st_size, about.st_ino
