"""Commands as they are typed, within this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from streamsparse.cli.app import app


def invoke(*arguments: object) -> Result:
    """What a command prints and how it exits."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_json(result: Result, status: int | None = None) -> dict[str, Any]:
    """The object that `--json` prints as the last line, of a command that exits with `status` if one is given."""
    assert status in (None, result.exit_code), result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found
