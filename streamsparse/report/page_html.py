"""HTML from Python: every string is escaped unless it is `Html` already."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from streamsparse.report.wording import printable

_VOID = frozenset({"meta", "br", "link", "wbr"})


class Html(str):
    """Text that is HTML: written by `element` or read from our own files, never from a run."""


def text(words: str) -> Html:
    """Words of a run or of ours, escaped."""
    return Html(escape(printable(words), quote=True))


def element(tag: str, *children: str, **attributes: str | int | bool | None) -> Html:
    """`<tag attributes>children</tag>`.

    Underscores in attribute names become hyphens, but for one at the end (`class_`); None and False leave an
    attribute out, True writes its bare name. Children that are not `Html` are escaped.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(parts: Iterable[str]) -> Html:
    """One after the other, each escaped unless it is `Html`."""
    return Html("".join(part if isinstance(part, Html) else text(part) for part in parts))


def with_code(words: str) -> Html:
    """`commands` in the font of commands."""
    parts = words.split("`")
    return joined(element("code", part) if place % 2 else text(part) for place, part in enumerate(parts))


def _attribute(name: str, value: str | int | bool | None) -> str:
    key = name.removesuffix("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{text(str(value))}"'
