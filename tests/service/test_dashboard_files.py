"""The dashboard's files: what they may hold, and how they are served."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamsparse.report.theme import DARK, LIGHT, css_variables
from streamsparse.service.dashboard import FILES
from tests.service.live import Live

MODULES = sorted(FILES.glob("*.js"))
LONGEST = 250
NEVER = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "eval(",
    "new Function",
    "new EventSource",
    "document.cookie",
)


def test_the_page_and_its_modules_are_served_as_they_are(shared: Live) -> None:
    page = shared.http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    for path in MODULES:
        answer = shared.http.get(f"/{path.name}")
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.content == path.read_bytes()
        assert answer.headers["cache-control"] == "no-cache"
    known = shared.http.get("/main.js", headers={"If-None-Match": answer_tag(shared, "/main.js")})
    assert known.status_code == 304


def answer_tag(live: Live, path: str) -> str:
    return str(live.http.get(path).headers["etag"])


def test_colours_are_those_of_the_report(shared: Live) -> None:
    answer = shared.http.get("/theme.css")
    assert answer.headers["content-type"].startswith("text/css")
    assert css_variables(LIGHT) in answer.text
    assert answer.text.count(css_variables(DARK)) == 2  # as the system says, and as chosen


@pytest.mark.parametrize(
    "path", ["/nothing.js", "/../app.py", "/%2e%2e/__init__.py", "/__init__.py", "/files/main.js"]
)
def test_nothing_else_is_served(shared: Live, path: str) -> None:
    answer = shared.http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.name))
def test_modules_are_small_and_build_no_markup_from_texts(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert [word for word in NEVER if word in text] == []
    assert set(re.findall(r"https?://[^\"' `]+", text)) <= {"http://www.w3.org/2000/svg"}
    for name in re.findall(r'from "\./([^"]+)"', text):
        assert (FILES / name).is_file()


def test_the_page_has_no_inline_code_and_every_file_it_names() -> None:
    page = (FILES / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", page)
    for name in re.findall(r'(?:src|href)="([^#"]+)"', page):
        assert name == "theme.css" or (FILES / name).is_file()
