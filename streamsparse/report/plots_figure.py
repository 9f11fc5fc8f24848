"""A figure before it is drawn: what it says in words, and how to draw it in any theme."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas

from streamsparse.report.theme import Theme

HALF = 5.0
"""Width in inches of a figure that shares its row with another: its 9-point text stays legible on a telephone."""

WHOLE = 10.2
"""Width in inches of small multiples."""


@dataclass(frozen=True)
class Figure:
    """One picture of the report.

    Attributes:
        name: for file names and anchors: lower-case letters, digits and hyphens, unique in a report.
        title: what one sees, in a sentence.
        alt: the picture in words and numbers, for those who do not see it.
        caption: how to read it.
        draw: onto an empty canvas of `size`, in the colours of a theme.
        size: width and height in inches.
        section: of the page: "network", "architecture", "errors", "paths", "method", "sample" or "time".
    """

    name: str
    title: str
    alt: str
    caption: str
    draw: Callable[[Canvas, Theme], None]
    size: tuple[float, float]
    section: str


def slug(text: str) -> str:
    """`text` as part of a figure's name; different texts may become the same."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
