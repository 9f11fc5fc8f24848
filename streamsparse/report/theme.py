"""Colours of the report, light and dark: the same roles for figures and page, one source for both.

Series colours tell apart for the colour-blind (Okabe and Ito's hues, darkened or lightened until they keep 3:1
against the paper), and never alone: markers, line styles or labels say the same.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Theme:
    """Colours by role, as "#rrggbb".

    Attributes:
        paper: behind everything; surface: behind tiles, table heads and callouts.
        ink: text; muted: text that stands back (both at least 4.5:1 on paper and surface).
        edge: axes and outlines that carry meaning (at least 3:1); grid: lines that carry none; fill: in outlines.
        blue, orange, green, purple: series, at least 3:1; blue is "ours", "kept" or "after".
    """

    paper: str
    surface: str
    ink: str
    muted: str
    edge: str
    grid: str
    fill: str
    blue: str
    orange: str
    green: str
    purple: str


LIGHT = Theme(
    paper="#ffffff",
    surface="#f4f6f8",
    ink="#191c20",
    muted="#535a63",
    edge="#7c8590",
    grid="#e4e7eb",
    fill="#edf0f3",
    blue="#0067a8",
    orange="#bf4a00",
    green="#007a5a",
    purple="#8b4597",
)
DARK = Theme(
    paper="#14171c",
    surface="#1e2228",
    ink="#e9ebee",
    muted="#aab2bc",
    edge="#7c8590",
    grid="#2c3138",
    fill="#23282f",
    blue="#5cb6ec",
    orange="#f0904e",
    green="#33c296",
    purple="#d29cdb",
)
THEMES = {"light": LIGHT, "dark": DARK}

# Figures inside the page are drawn once, in colours that mean nothing; `with_variables` makes them var(--role).
VARIABLES = Theme(**{role: f"#0badc{number:x}" for number, role in enumerate(asdict(LIGHT))})

# Images cannot follow a theme; this one blue keeps 3:1 against both papers and fades into either by its opacity.
HEAT = "#2f83c9"


def contrast(one: str, other: str) -> float:
    """Ratio of the relative luminances of two colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def with_variables(svg: str) -> str:
    """The drawing with `var(--role)` wherever a colour of `VARIABLES` stands."""
    roles = {colour: role for role, colour in asdict(VARIABLES).items()}
    return re.sub("|".join(roles), lambda found: f"var(--{roles[found[0]]})", svg)


def css_variables(theme: Theme) -> str:
    """Declarations of every role, for a style sheet."""
    return " ".join(f"--{role}: {colour};" for role, colour in asdict(theme).items())
