"""The sections of the page, in reading order: what each shows, and what to run where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streamsparse.report.facts import Facts
from streamsparse.report.figures_svg import inline_svg
from streamsparse.report.page_html import Html, element, with_code
from streamsparse.report.page_tables import (
    layer_table,
    measured_table,
    point_table,
    provenance_table,
    sample_table,
    stage_table,
)
from streamsparse.report.plots_figure import HALF, Figure


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        name: anchor, and `Figure.section` of its figures; title: heading.
        lead: what it is about; absent: said when it has neither figure nor table.
        table: after the figures; folded: whether it opens on demand.
    """

    name: str
    title: str
    lead: str
    absent: str
    table: Callable[[Facts], Html] | None = None
    folded: bool = False


SECTIONS = (
    Section(
        "network",
        "Whole network",
        "What every budget would cost: the allocation cuts each group where the network loses least.",
        "No budget can be compared yet. `streamsparse solve RUN` finds the best channels of every group.",
        point_table,
        folded=True,
    ),
    Section(
        "architecture",
        "Architecture",
        "What is left of every layer: its channels, its parameters, its work.",
        "Nothing is pruned yet. `streamsparse solve RUN --budget params=0.2` chooses an architecture.",
        layer_table,
    ),
    Section(
        "errors",
        "Errors, predicted and measured",
        "The statistics predict every layer's error without data; evaluation measures the written network. "
        "Errors are squared, relative to the output's power: at 4 % a layer's output is off by a fifth.",
        "Nothing is measured yet. `streamsparse evaluate RUN` compares the original and the pruned network.",
        measured_table,
    ),
    Section(
        "paths",
        "Paths and sensitivities",
        "For every group, the best channels of each count, and what it costs the network to keep only those.",
        "No paths are solved yet. `streamsparse solve RUN` finds them from the statistics.",
    ),
    Section(
        "method",
        "Sparse entropic regression",
        "The method at work: the alternation between weights and w converges, and w becomes sparse as both ε rise.",
        "No walk was computed for this report.",
    ),
    Section(
        "sample",
        "Conditioning and sample",
        "Whether the regressions are well posed, and whether the calibration sample is large enough for them.",
        "There are no statistics yet. `streamsparse accumulate RUN` computes them.",
        sample_table,
    ),
    Section(
        "time",
        "Time and memory",
        "What every stage took when it last ran.",
        "No stage left a record of its time.",
        stage_table,
    ),
    Section(
        "provenance",
        "Provenance",
        "What went into the run, so that it can be repeated.",
        "The run says nothing of where it came from.",
        provenance_table,
    ),
)


def section(facts: Facts, part: Section, figures: list[Figure]) -> Html:
    """Heading, lead, figures, table."""
    own = [figure for figure in figures if figure.section == part.name]
    rows = part.table(facts) if part.table else Html("")
    if rows and part.folded:
        rows = element("details", element("summary", "The same in numbers"), rows)
    body = [element("div", *map(_figure, own), class_="figures")] if own else []
    if not own and not rows:
        body = [element("p", with_code(part.absent), class_="absent")]
    heading = element("h2", part.title, id=f"{part.name}-title")
    return element(
        "section",
        heading,
        element("p", part.lead, class_="lead"),
        *body,
        rows,
        id=part.name,
        aria_labelledby=f"{part.name}-title",
    )


def contents() -> Html:
    """Links to the sections."""
    links = [element("li", element("a", part.title, href=f"#{part.name}")) for part in SECTIONS]
    return element("nav", element("ol", *links), class_="contents", aria_label="Contents")


def _figure(figure: Figure) -> Html:
    """The picture under its title; one that is wide scrolls in its own box on a narrow screen."""
    wide = figure.size[0] > 1.2 * HALF
    drawing = Html(inline_svg(figure))
    picture = element("div", drawing, class_="scroll")
    if wide:  # what scrolls can be reached by keyboard
        picture = element("div", drawing, class_="scroll", tabindex=0, role="region", aria_label=figure.title)
    return element(
        "div",
        element("h3", figure.title),
        element("figure", picture, element("figcaption", figure.caption)),
        id=f"figure-{figure.name}",
        class_="panel wide" if wide else "panel",
    )
