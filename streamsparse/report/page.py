"""The report as one HTML file that needs nothing else: no network, no font, no script to be read.

The style sheet and the few lines of script (theme switch, sorting) are part of the file; a content security policy
forbids everything else, so that nothing in a run, whatever it is named, can load or run anything.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from streamsparse.report.facts import Facts
from streamsparse.report.figures import figures
from streamsparse.report.page_html import Html, element
from streamsparse.report.page_sections import SECTIONS, contents, section
from streamsparse.report.page_summary import headline, summary
from streamsparse.report.theme import DARK, LIGHT, css_variables

__all__ = ["render_page"]


def render_page(facts: Facts) -> str:
    """The whole page; the same facts give the same bytes."""
    script = _own("page.js")
    drawn = figures(facts)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content="streamsparse"),
        element("title", headline(facts)),
        element("style", _style()),
    )
    body = element(
        "body",
        element("a", "Skip to the report", href="#report", class_="skip"),
        element("button", "Dark theme", id="theme", type="button", hidden=True),
        element(
            "div",
            contents(),
            element(
                "main",
                summary(facts),
                *(section(facts, part, drawn) for part in SECTIONS),
                id="report",
                tabindex=-1,
            ),
            class_="layout",
        ),
        element("script", script),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _policy(script: str) -> str:
    """Only what is in the file: its styles, the pictures in its drawings, and this one script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _style() -> Html:
    """Both themes' colours, then the rules: dark where the system or the reader asks for it, light in print."""
    light, dark = f"color-scheme: light; {css_variables(LIGHT)}", f"color-scheme: dark; {css_variables(DARK)}"
    return Html(
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ {dark} }}\n"
        f"{_own('page.css')}"
        f"@media print {{ :root, :root[data-theme], :root:not([data-theme=light]) {{ {light} }} }}\n"
    )


def _own(name: str) -> Html:
    """A file beside this module."""
    return Html(files("streamsparse.report").joinpath(name).read_text(encoding="utf-8"))
