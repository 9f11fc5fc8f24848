"""Results that are committed: a page to read and the same figures as JSON, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_page(directory: Path, name: str, text: str, record: dict[str, Any]) -> None:
    """Write NAME.md and NAME.json into a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(text)
    (directory / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
