"""The form of a specification: `KIND:NAME?option=value&option=value`, and code that it names."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from streamsparse.errors import InputError


@dataclass(frozen=True)
class Spec:
    """A parsed specification.

    Attributes:
        kind: before the first colon, "" where there is none.
        name: after it, without options.
        options: numbers, booleans, None and texts by name.
    """

    kind: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_spec(text: str, error: type[InputError], *, options: bool = True) -> Spec:
    """Split a specification.

    Args:
        error: raised when it does not parse.
        options: False: a question mark belongs to the name (a path).
    """
    head, _, query = text.partition("?") if options else (text, "", "")
    kind, colon, name = head.partition(":")
    if not colon:
        kind, name = "", head
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as problem:
        raise bad_spec(error, text, "options as name=value&name=value", problem) from problem
    if not name or any(not key.isidentifier() for key, _ in pairs):
        raise bad_spec(error, text, "KIND:NAME?option=value", "no name" if not name else query)
    return Spec(kind, name, {key: _value(value) for key, value in pairs})


def _value(text: str) -> Any:
    """A Python literal where it is one, `true`, `false` and `none` in any case, else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def named_callable(text: str, error: type[InputError], *, trust_code: bool) -> Callable[..., Any]:
    """Import `package.module:function`.

    Args:
        error: raised when there is no such function.
        trust_code: look in the current directory too. Importing runs the module's code: never on behalf of
            somebody else.
    """
    spec = parse_spec(text, error)
    if trust_code and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(spec.kind)
    except Exception as problem:
        remedy = "Give MODULE:FUNCTION of an importable module" + ("." if trust_code else ", trusting its code.")
        raise bad_spec(error, text, f"an importable module {spec.kind}", problem, remedy) from problem
    found = getattr(module, spec.name, None)
    if not callable(found):
        names = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise bad_spec(
            error, text, f"a function {spec.name} in {spec.kind}", repr(found), suggestion(spec.name, names)
        )
    return found  # type: ignore[no-any-return]  # a module's attribute


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest known ones."""
    names = sorted(known)
    near = get_close_matches(name, names, 3) or names[:8]
    return f"Did you mean {', '.join(near)}?" if near else "Check the spelling."


def bad_spec(
    error: type[InputError], text: str, expected: str, got: object, remedy: str | None = None
) -> InputError:
    """A specification that names nothing."""
    return error(
        f"{text!r} cannot be used.",
        expected=expected,
        got=got,
        where=text,
        remedy=remedy or "See the examples in --help.",
    )
