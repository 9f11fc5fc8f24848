"""The report's figures: those that a run has data for, drawn in any theme, as pictures for papers and slides.

>>> for figure in figures(facts):
...     save_figure(figure, Path("figures") / f"{figure.name}.svg")
"""

from __future__ import annotations

from pathlib import Path

from streamsparse.errors import UsageError
from streamsparse.report.facts import Facts
from streamsparse.report.figures_svg import write_figure
from streamsparse.report.plots_errors import error_figures
from streamsparse.report.plots_figure import Figure
from streamsparse.report.plots_groups import path_figures, sensitivity_figures
from streamsparse.report.plots_layers import architecture_figures, sample_figures
from streamsparse.report.plots_method import method_figures
from streamsparse.report.plots_network import pareto_figures
from streamsparse.report.plots_stages import stage_figures
from streamsparse.report.theme import THEMES

__all__ = ["FORMATS", "Figure", "figures", "save_figure"]

FORMATS = ("png", "svg")


def figures(facts: Facts) -> list[Figure]:
    """In the order of the page; a figure without data is left out."""
    return [
        *pareto_figures(facts),
        *architecture_figures(facts),
        *error_figures(facts),
        *path_figures(facts),
        *sensitivity_figures(facts),
        *method_figures(facts),
        *sample_figures(facts),
        *stage_figures(facts),
    ]


def save_figure(figure: Figure, path: Path, theme: str = "light") -> None:
    """Draw `figure` with its title: PNG at 200 dots per inch or SVG with text as text, by the suffix of `path`.

    Raises:
        UsageError: for another suffix, or a theme that is not "light" or "dark".
    """
    picture_format = path.suffix.removeprefix(".").lower()
    if picture_format not in FORMATS:
        raise UsageError(
            "Figures are written as PNG or SVG.",
            expected=" or ".join(f".{name}" for name in FORMATS),
            got=path.suffix or "no suffix",
            where=path,
            remedy="name the file after its format",
        )
    if theme not in THEMES:
        raise UsageError("There is no such theme.", expected=" or ".join(THEMES), got=theme, remedy="choose one")
    write_figure(figure, path, THEMES[theme], picture_format)
