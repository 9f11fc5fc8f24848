"""The page in a real browser: what it loads, how it fits, what keyboard, pointer and printer make of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from streamsparse.report.page import render_page
from streamsparse.report.theme import DARK, LIGHT
from tests.report.example import hostile_facts, lenet_facts

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
PATIENCE = 120_000
"""Milliseconds: a busy machine is no reason to fail."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path"),
    pytest.mark.xdist_group("browser"),
]


def colour(name: str) -> str:
    """As a browser reports it."""
    return "rgb({}, {}, {})".format(*(int(name[start : start + 2], 16) for start in (1, 3, 5)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    rootless = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=rootless, timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page(lenet_facts()), encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the report; afterwards, nothing may have been requested, refused or logged."""
    pages, troubles = [], []

    def opened(path: Path = report, **settings: Any) -> Any:
        page = browser.new_page(**settings)
        page.set_default_timeout(PATIENCE)
        pages.append(page)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: refuse(dialog.message))
        page.on("request", lambda request: None if request.url == path.as_uri() else refuse(request.url))
        page.goto(path.as_uri())
        return page

    def refuse(url: str) -> None:
        if not url.startswith("data:image/png"):
            troubles.append(f"asked for {url}")

    yield opened
    for page in pages:
        page.close()
    assert troubles == []


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize(("scheme", "theme"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_in_either_scheme(open_page: Any, width: int, scheme: str, theme: Any) -> None:
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert background(page) == colour(theme.paper)
    fills = page.evaluate("[...document.querySelectorAll('svg text')].map((one) => getComputedStyle(one).fill)")
    assert set(fills) <= {colour(theme.ink), colour(theme.muted), colour(theme.orange)}
    texts = page.evaluate("[...document.querySelectorAll('svg text')].every((one) => one.getBBox().width > 0)")
    assert texts


def test_every_picture_keeps_its_words_inside(open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 800})
    outside = page.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter((one) => {
            const inner = one.getBoundingClientRect(), outer = one.ownerSVGElement.getBoundingClientRect();
            return inner.left < outer.left - 2 || inner.right > outer.right + 2
                || inner.top < outer.top - 2 || inner.bottom > outer.bottom + 2;
        }).map((one) => one.textContent)"""
    )
    assert outside == []


def test_the_keyboard_reaches_everything(open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 800})
    focused = "document.activeElement.textContent.trim()"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the report"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Dark theme"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert background(page) == colour(DARK.paper)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"
    unreachable = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1"
        " && one.tabIndex < 0).length"
    )
    assert unreachable == 0


def test_the_switch_changes_the_theme_and_back(open_page: Any) -> None:
    page = open_page(color_scheme="dark")
    switch = page.locator("#theme")
    assert switch.inner_text() == "Light theme"
    switch.click()
    assert background(page) == colour(LIGHT.paper)
    assert switch.inner_text() == "Dark theme"
    switch.click()
    assert background(page) == colour(DARK.paper)


def test_tables_sort_both_ways(open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 800})
    head = page.locator("#layer-table [data-column='5']")  # parameters after
    column = "[...document.querySelectorAll('#layer-table tbody tr')].map((row) => +row.cells[5].dataset.value)"
    start = page.evaluate(column)
    head.locator("button").click()
    assert page.evaluate(column) == sorted(start) != start
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert page.evaluate(column) == sorted(start, reverse=True)
    predicted = page.locator("#layer-table [data-column='9']").locator("button")
    for _ in range(2):  # what is missing stays last, whichever way
        predicted.click()
        assert page.locator("#layer-table tbody tr").last.locator("td").nth(8).inner_text() == "–"


def test_it_reads_without_script(browser: Any, report: Path) -> None:
    page = browser.new_page(java_script_enabled=False, viewport={"width": 1280, "height": 800})
    page.goto(report.as_uri())
    assert page.locator("#theme").is_hidden()
    assert page.locator("#layer-table tbody tr").count() == 4
    assert page.locator("th button").count() == 0
    page.close()


def test_it_prints_in_light_on_pages(open_page: Any) -> None:
    page = open_page(color_scheme="dark", viewport={"width": 688, "height": 900})
    document = page.pdf(format="A4", prefer_css_page_size=True)
    assert document.startswith(b"%PDF-")
    assert 3 <= document.count(b"/Type /Page\n") <= 20
    page.emulate_media(media="print")
    assert background(page) == colour(LIGHT.paper)
    assert page.locator("nav").is_hidden()
    assert page.locator("#theme").is_hidden()
    assert page.locator("#point-table").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    tallest = page.evaluate("Math.max(...[...document.querySelectorAll('.panel')].map((one) => one.offsetHeight))")
    assert tallest < 1000  # A4 without margins is about 1,017 pixels high
    styles = "[...document.querySelectorAll('{}')].map((one) => getComputedStyle(one).{})"
    # Chromium leaves buttons out where it repeats a table's head on the next page
    assert set(page.evaluate(styles.format("th button", "display"))) == {"contents"}
    # or else a heading stays behind with half of its lead
    assert set(page.evaluate(styles.format(".lead", "breakInside"))) == {"avoid"}


def test_hostile_names_run_nothing(open_page: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    name = "</script><script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"
    path.write_text(render_page(hostile_facts(name)), encoding="utf-8")
    page = open_page(path, viewport={"width": 360, "height": 740})
    assert name in page.locator("h1").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
