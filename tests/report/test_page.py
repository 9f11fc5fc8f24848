"""The page as text: whole, escaped, self-contained, in order, and the same every time."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.report.facts import Facts, StageFacts, TimedBatch
from streamsparse.report.figures import figures
from streamsparse.report.page import render_page
from streamsparse.report.page_html import element, joined, text, with_code
from streamsparse.report.page_summary import headline
from streamsparse.report.wording import compact, count, duration, fewer, number, percent, printable, shorten, size
from tests.report.example import broken_facts, empty_facts, hostile_facts, lenet_facts, wide_facts

VOID = {"meta", "br", "wbr", "link"}
LOADING = {"src", "srcset", "href", "action", "data", "poster", "background", "formaction", "ping"}


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [words for name, words in self.words if name == tag]


@pytest.fixture(scope="module")
def lenet() -> tuple[str, Page]:
    html = render_page(lenet_facts())
    return html, Page(html)


def check(html: str) -> Page:
    """What holds for every page."""
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert svg["aria-label"]
        assert svg["aria-describedby"]
    return page


def test_the_page_is_whole(lenet: tuple[str, Page]) -> None:
    html, page = lenet
    check(html)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.all("svg")) == 20
    assert len(html) < 600_000


def test_headline_and_tiles_say_what_it_costs_and_gains(lenet: tuple[str, Page]) -> None:
    _, page = lenet
    said = [words.replace("\u00a0", " ") for _, words in page.words]
    assert "LeNet on MNIST: 94.2 % fewer parameters, 0.47 points less accurate" in said
    assert {"45,322", "98.59 %", "0.0214", "301 µs"} <= set(said)
    assert any("2.7 times as fast" in words for words in said)
    assert any("Latencies were measured on a machine" in words for words in said)


def test_nothing_is_loaded_from_anywhere(lenet: tuple[str, Page]) -> None:
    html, page = lenet
    for tag, attributes in page.tags:
        for name in LOADING & attributes.keys():
            value = attributes[name] or ""
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:60])
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag not in {"link", "iframe", "object", "embed", "form", "base", "foreignobject"}
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "http://" not in html
    assert "https://" not in html


def test_the_policy_allows_this_script_alone(lenet: tuple[str, Page]) -> None:
    html, page = lenet
    policy = next(meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></script><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
    "]]>&lt;!--{{7*7}}${x}`rm`\u202e\x00\x1b[31m\ud800",
]


def test_names_of_a_run_are_words_and_nothing_else() -> None:
    name = " ".join(HOSTILE)
    facts = hostile_facts(name)
    html = render_page(replace(facts, groups=facts.groups[:1], walks=facts.walks[:1]))
    page = check(html)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    html.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)
    shown = printable(name).replace("`", "")
    assert any(shown in words.replace("`", "") for words in page.text_of("h1"))


@settings(max_examples=60)
@given(words=st.text(), name=st.text())
def test_any_text_survives_as_text(words: str, name: str) -> None:
    page = Page(element("p", words, title=name))
    assert "".join(data for _, data in page.words) == printable(words)
    assert page.all("p") == [{"title": printable(name)}]


@pytest.mark.parametrize(
    "facts",
    [empty_facts(), broken_facts(), replace(empty_facts(), stages=(StageFacts("capture", 1, None, "", ""),))],
)
def test_what_is_missing_is_said(facts: Facts) -> None:
    html = render_page(facts)
    page = check(html)
    assert (
        "nan" not in " ".join(words.lower() for tag, words in page.words if tag not in {"script", "style"}).split()
    )
    if facts.pruned is None:
        said = " ".join(words for _, words in page.words)
        assert "not pruned yet" in said
        assert "streamsparse solve RUN --budget params=0.2" in said
        assert len(page.all("p")) >= 8


def test_a_wide_network_fits_in_three_megabytes() -> None:
    facts = wide_facts(20)
    html = render_page(facts)
    page = check(html)
    assert len(html.encode()) < 3_000_000
    assert "".join(page.text_of("tbody") + page.text_of("th")).count("denselayer") >= 20 * 2


def test_the_same_facts_give_the_same_bytes() -> None:
    facts = replace(lenet_facts(), groups=(), walks=lenet_facts().walks[:1], stages=())
    assert render_page(facts) == render_page(facts)


def test_tables_sort_by_numbers_not_by_their_words(lenet: tuple[str, Page]) -> None:
    _, page = lenet
    cells = [cell for cell in page.all("td") if cell.get("class") == "number"]
    values = [cell["data-value"] for cell in cells if "data-value" in cell]
    assert len(values) > 50
    assert all(float(value or "nan") == float(value or "nan") for value in values)
    assert len(cells) > len(values)  # missing ones have no value, and sort last


def test_headlines() -> None:
    facts = lenet_facts()
    assert headline(empty_facts()) == "LeNet on MNIST: not pruned yet"
    unmeasured = replace(facts, measured=())
    assert (
        headline(unmeasured)
        .replace("\u00a0", " ")
        .endswith("94.2 % fewer parameters, 94.2 % fewer multiply-accumulates")
    )
    same = replace(facts.measured[0], pruned_accuracy=0.9906)
    assert headline(replace(facts, measured=(same,))).endswith("equally accurate")
    other = replace(facts.measured[0], costs=facts.original)  # another checkpoint's figures are not this one's
    assert headline(replace(facts, measured=(other,))) == headline(unmeasured)


def test_html_is_escaped_unless_it_is_html() -> None:
    assert joined(["<b>", element("b", "&")]) == "&lt;b&gt;<b>&amp;</b>"
    assert element("a", "x", hidden=True, class_=None, data_value=3) == '<a hidden data-value="3">x</a>'
    assert with_code("run `a<b` now") == "run <code>a&lt;b</code> now"
    assert text('"') == "&quot;"


def test_numbers_in_words() -> None:
    def plain(words: str) -> str:
        return words.replace("\u00a0", " ")

    assert [number(value) for value in (0, 4.0, 0.01234, 123.4, 1234.5, 1.5e-7, 1e-6, 2.34e9, -0.5)] == [
        "0", "4", "0.0123", "123", "1,234", "1.5·10⁻⁷", "10⁻⁶", "2.3·10⁹", "−0.5",
    ]  # fmt: skip
    assert [plain(compact(value)) for value in (12, 999.9, 12_345, 999_960, 3.1e8)] == [
        "12", "1 k", "12.3 k", "1 M", "310 M",
    ]  # fmt: skip
    assert [plain(size(value)) for value in (12, 57_500_000, 999_960)] == ["12 B", "57.5 MB", "1 MB"]
    assert [plain(percent(value)) for value in (0, 0.8325, 0.9999, 1, 0.00052, 0.05, -0.021)] == [
        "0 %", "83.2 %", "99.99 %", "100 %", "0.052 %", "5.0 %", "−2.1 %",
    ]  # fmt: skip
    assert [plain(duration(value)) for value in (8e-4, 0.0123, 12.34, 252, 7500)] == [
        "800 µs", "12.3 ms", "12.3 s", "4 min 12 s", "2 h 05 min",
    ]  # fmt: skip
    assert count(61706) == "61,706"
    assert [plain(fewer(*pair)) for pair in ((10, 4), (10, 10), (10, 15))] == [
        "60.0 % fewer",
        "unchanged",
        "50.0 % more",
    ]
    assert shorten("features.denseblock1.conv", 11) == "fea…k1.conv"


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_has_words(value: float) -> None:
    for words in (number, percent, compact, size, duration):
        assert words(value).strip()
        assert "nan" not in words(value)


def test_a_stage_cut_short_and_larger_batches_are_told() -> None:
    facts = lenet_facts()
    stages = (replace(facts.stages[0], finished=""), *facts.stages[1:])
    timed = replace(
        facts.measured[0],
        batch_images=1,
        larger_batches=(TimedBatch(32, 0.0004, 0.0002),),
        device="cpu, 2 CPU threads",
    )
    page = render_page(replace(facts, stages=stages, measured=(timed, *facts.measured[1:])))
    assert page.count("cut short") == 1 + render_page(facts).count("cut short")  # there is a note of it, too
    assert "1 image at a time; 32 at a time: 2 times, on cpu" in page
    assert "32: 400\u00a0µs → 200\u00a0µs" in page


def test_layers_whose_conditioning_is_unknown_are_not_spoken_for() -> None:
    facts = lenet_facts()
    titles = [
        next(figure.title for figure in figures(replace(facts, layers=layers)) if figure.name == "condition")
        for layers in (facts.layers, (replace(facts.layers[0], condition=None), *facts.layers[1:]))
    ]
    assert titles[0].startswith("The worst conditioned inputs are those of")
    assert titles[1].startswith(f"Of {len(facts.layers) - 1} of {len(facts.layers)} layers, ")
