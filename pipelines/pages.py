"""Results that are committed: a page to read and the same figures as JSON, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from streamsparse.cli.console import print_json, say

THREADS = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's")]
RUN = Annotated[Path | None, typer.Option(help="Keep everything here; the same command goes on after a kill.")]
WRITE = Annotated[Path | None, typer.Option(help="Write the tables, as .md and .json, into this directory.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def write_page(directory: Path, name: str, text: str, record: dict[str, Any]) -> None:
    """Write NAME.md and NAME.json into a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(text)
    (directory / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def publish(text: str, record: dict[str, Any], write: Path | None, name: str, as_json: bool) -> None:
    """Show a page; write it, with its figures, into a directory; end with the figures as a line of JSON."""
    say(text)
    if write is not None:
        write_page(write, name, text, record)
    if as_json:
        print_json(record)
