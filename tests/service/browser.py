"""A browser with a dashboard in it, and what every visit must leave behind: nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which
from typing import Any

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
PATIENCE = 60_000
"""Milliseconds; a busy machine is no reason to fail."""


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    rootless = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=rootless)
        yield browser
        browser.close()


@contextmanager
def visiting(
    browser: Any, url: str, path: str = "", *, refused: tuple[int, ...] = (), **settings: Any
) -> Iterator[Any]:
    """A page of the dashboard. At the end nothing may have gone wrong in it, and nobody else been asked.

    Args:
        refused: statuses that the visit is meant to meet; browsers log them as errors.
    """
    options = {"viewport": {"width": 1280, "height": 900}, "accept_downloads": True} | settings
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    troubles: list[str] = []
    page.on("console", lambda message: _hear(message, refused, troubles))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: _check(request.url, url, troubles))
    page.goto(f"{url}/#/{path}")
    page.wait_for_selector("main h1, dialog, .problem, .empty")
    try:
        yield page
    finally:
        page.unroute_all(behavior="wait")  # else an answer under way when the page goes fails the next visit
        context.close()
    assert not troubles, "\n".join(troubles)


def _hear(message: Any, refused: tuple[int, ...], troubles: list[str]) -> None:
    expected = any(f"status of {status} " in message.text for status in refused)
    if message.type in ("error", "warning") and not expected:
        troubles.append(message.text)


def _check(asked: str, url: str, troubles: list[str]) -> None:
    if not asked.startswith((f"{url}/", "data:image/", "blob:")):
        troubles.append(f"asked for {asked}")


def digits(text: str) -> int:
    """`12,341` -> 12341."""
    return int(text.replace(",", ""))
