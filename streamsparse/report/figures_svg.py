"""Figures as files and as SVG inside a page.

matplotlib reads its settings from one global table while it draws. Everything here happens under one lock, with
that table at its defaults and put back afterwards: no user's matplotlibrc changes a report, and threads may draw.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from threading import Lock
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure as Canvas

from streamsparse.report.plots_axes import TEXT, drawable, tip
from streamsparse.report.plots_figure import Figure
from streamsparse.report.theme import THEMES, VARIABLES, Theme, with_variables
from streamsparse.report.wording import printable

PNG_DOTS_PER_INCH = 200
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LOCK = Lock()


def write_figure(figure: Figure, path: Path, theme: Theme, picture_format: str) -> None:
    """Draw `figure` with its title into a file; `picture_format` is "png" or "svg"."""
    if picture_format == "svg":
        path.write_text(standalone_svg(figure, theme), encoding="utf-8")
        return
    with _settings(figure.name):
        canvas = _drawn(figure, theme, titled=True)
        words = {"Description": figure.alt}
        canvas.savefig(path, format="png", dpi=PNG_DOTS_PER_INCH, facecolor=theme.paper, metadata=words)


def standalone_svg(figure: Figure, theme: Theme = THEMES["light"]) -> str:
    """An SVG document with its title in the picture and its text as text."""
    root = _svg(figure, theme, titled=True)
    title = ElementTree.Element("title", {"id": f"{figure.name}-title"})
    title.text = printable(figure.title)
    root.insert(0, title)
    root.set("aria-labelledby", title.attrib["id"])
    for side, points in zip(("width", "height"), root.attrib["viewBox"].split()[2:], strict=True):
        root.set(side, f"{points}pt")
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("style", f"font-family: {_FONTS}; background: {theme.paper}")
    paper = ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": theme.paper})
    root.insert(2, paper)  # behind everything, after title and description
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def inline_svg(figure: Figure) -> str:
    """The picture for an HTML page, without title: colours are CSS variables, ids begin with the figure's name."""
    root = _svg(figure, VARIABLES, titled=False)
    root.set("aria-label", printable(figure.title))  # a title element would hover over the whole picture
    return with_variables(ElementTree.tostring(root, encoding="unicode"))


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    """matplotlib's defaults with ours; the same figure gets the same ids in every drawing."""
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["font.family"] = ["DejaVu Sans"]  # matplotlib brings it; wider than what browsers show
        matplotlib.rcParams["font.size"] = TEXT
        matplotlib.rcParams["text.parse_math"] = False  # layer names are no formulas
        matplotlib.rcParams["svg.fonttype"] = "none"
        matplotlib.rcParams["svg.hashsalt"] = salt
        yield


def _drawn(figure: Figure, theme: Theme, *, titled: bool) -> Canvas:
    width, height = figure.size
    lines = _wrapped(figure.title, letters=int(width * 9.6)) if titled else []
    height += 0.24 * len(lines)
    canvas = Canvas(figsize=(width, height), layout="constrained")
    canvas.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    canvas.patch.set_visible(False)
    if lines:
        canvas.patch.set_visible(True)
        canvas.patch.set_facecolor(theme.paper)
        title = "\n".join(lines)
        canvas.suptitle(title, x=0.012, ha="left", color=theme.ink, fontsize=11, fontweight="bold")
    figure.draw(canvas, theme)
    return canvas


def _wrapped(text: str, letters: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [drawable(line, letters + 40) for line in lines]


def _svg(figure: Figure, theme: Theme, *, titled: bool) -> ElementTree.Element:
    """matplotlib's drawing without its metadata and style sheet, which would reach into a page around it."""
    text = StringIO()
    with _settings(figure.name):
        canvas = _drawn(figure, theme, titled=titled)
        canvas.patch.set_visible(False)
        canvas.savefig(text, format="svg", metadata={"Date": None})
    source = ElementTree.fromstring(_without_doctype(text.getvalue()))
    for element in source.iter():
        _plain(element)
    kept = [child for child in source if child.tag != "metadata" and not _is_style(child)]
    root = ElementTree.Element("svg", {"viewBox": source.get("viewBox", ""), "role": "img"})
    ElementTree.SubElement(root, "desc", {"id": f"{figure.name}-desc"}).text = printable(figure.alt)
    root.set("aria-describedby", f"{figure.name}-desc")
    root.extend(kept)
    _rename_ids(root, figure.name)
    return root


def _without_doctype(text: str) -> str:
    return re.sub(r"<!DOCTYPE[^>]*>", "", text, count=1)


def _is_style(element: ElementTree.Element) -> bool:
    return element.tag == "defs" and len(element) == 1 and element[0].tag == "style"


def _plain(element: ElementTree.Element) -> None:
    """No name spaces, the page's font, hundredths of a point."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    for key in list(element.attrib):
        value = element.attrib.pop(key)
        name = key.rpartition("}")[2]
        if name in ("d", "transform", "x", "y", "width", "height"):
            value = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
            value = re.sub(r"\s+", " ", value).strip()
        if name == "style":
            value = re.sub(r"font-family:[^;]*;?\s*", "", value).replace(": ", ":").replace("; ", ";")
        if value != "rotate(-0)" and not value.startswith("rotate(-0 "):
            element.set(name, value)


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Keep the ids that are used, unique on the page; turn those that are tool tips into titles."""
    marks = tip("")
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    names = {old: f"{prefix}-{number}" for number, old in enumerate(sorted(used))}
    for element in list(root.iter()):
        own = element.get("id", "")
        if own.startswith(marks):
            ElementTree.SubElement(element, "title").text = printable(own.removeprefix(marks))
        if own in names:
            element.set("id", names[own])
        elif own and not own.startswith(f"{prefix}-"):
            del element.attrib["id"]
        for key, value in element.attrib.items():
            for old in re.findall(r"url\(#([^)]+)\)|^#(.+)$", value):
                element.set(key, value.replace("#" + "".join(old), "#" + names["".join(old)]))
