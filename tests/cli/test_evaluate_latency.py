"""`evaluate --latency`: which requests are refused, before anything is read."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from streamsparse.cli.app import app


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-sizes", "1,8"), "--latency"),
        (("--latency", "--batch-sizes", "0"), "whole numbers"),
        (("--latency", "--batch-sizes", "1,x"), "whole numbers"),
    ],
)
def test_batch_sizes_that_mean_nothing_are_refused(options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", "RUN", "--data", "mnist", *options, "--json"])
    assert result.exit_code == 2
    error = json.loads(result.stdout.strip().splitlines()[-1])
    assert error["error"] == "UsageError"
    assert words in error["expected"]
