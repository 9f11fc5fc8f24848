"""The dashboard: static files of one page, served beside the API that they call.

files/index.html     the frame of the page; everything in it is built by modules from answers of the API
files/*.js           ES modules as they are written: no build step, nothing from elsewhere
files/*.css          the looks; colours come from /theme.css, which is made of the report's themes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from streamsparse.report.theme import DARK, LIGHT, css_variables

FILES = Path(__file__).parent / "files"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_REVALIDATED = {"Cache-Control": "no-cache"}
"""A browser asks each time whether its copy still holds, and gets it anew only after an update."""


class Dashboard(StaticFiles):
    """The files, with types that do not depend on the machine: a browser runs no module of another type."""

    def __init__(self) -> None:
        super().__init__(directory=FILES, html=True)

    def file_response(self, full_path: Any, *args: Any, **options: Any) -> Response:
        """A file, or 304 where the browser has it."""
        response = super().file_response(full_path, *args, **options)
        kind = _TYPES.get(Path(full_path).suffix)
        if kind is not None and response.status_code == 200:
            response.headers["Content-Type"] = f"{kind}; charset=utf-8"
        response.headers.update(_REVALIDATED)
        return response

    async def get_response(self, path: str, scope: Scope) -> Response:
        """`theme.css` is made, the others are files."""
        if path == "theme.css" and scope["method"] in ("GET", "HEAD"):
            return Response(theme_css(), media_type="text/css", headers=_REVALIDATED)
        return await super().get_response(path, scope)


def mount_dashboard(app: FastAPI) -> None:
    """Serve the dashboard at `/`, below every route that the application has by now."""
    app.mount("/", Dashboard(), name="dashboard")


def theme_css() -> str:
    """Colours by role for light, dark and what the system says, the same as in the report."""
    light, dark = (
        f"color-scheme: {scheme}; {css_variables(theme)}" for scheme, theme in (("light", LIGHT), ("dark", DARK))
    )
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ {dark} }}\n"
    )
