"""serve and download as commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

import streamsparse as ss
from streamsparse.cli.app import app
from streamsparse.cli.serving import parse_checkpoint
from streamsparse.errors import UsageError
from tests.service.live import make_run, serving
from tests.small import SmallNet, build

SERVE = [sys.executable, "-c", "from streamsparse.cli import main; main()", "serve"]


def test_serve_alone_is_enough(tmp_path: Path) -> None:
    """ROOT is made, the address is printed, a checkpoint can be asked for, and Ctrl-C ends it."""
    command = [*SERVE, "--root", str(tmp_path / "runs"), "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        about = json.loads(process.stdout.readline())
        assert httpx.get(f"{about['url']}/api/v1/runs", timeout=30).json() == {"runs": []}
        process.send_signal(2)
        _, errors = process.communicate(timeout=30)
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert any(line["message"] == "request" and line["path"] == "/api/v1/runs" for line in lines)
    assert (tmp_path / "runs" / ".streamsparse" / "service.db").is_file()


def test_tokens_are_made_once_and_listening_beyond_the_loopback_needs_them(tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = run(app, ["serve", "--tokens", str(tmp_path / "t"), "--new-token", "anna", "--json"])
    assert made.exit_code == 0
    token = json.loads(made.stdout)["token"]
    assert token not in (tmp_path / "t").read_text()
    again = run(app, ["serve", "--tokens", str(tmp_path / "t"), "--new-token", "anna"])
    assert again.exit_code == 2
    open_to_all = run(app, ["serve", "--root", str(tmp_path), "--host", "0.0.0.0"])
    assert open_to_all.exit_code == 2
    assert "--tokens" in open_to_all.output
    planned = run(app, ["serve", "--root", str(tmp_path / "new"), "--data", "val=npz:x.npz", "--dry-run"])
    assert json.loads(planned.stdout)["data"] == {"val": "npz:x.npz"}
    assert not (tmp_path / "new").exists()


def test_download_gives_a_checkpoint_that_loads(tmp_path: Path) -> None:
    make_run(tmp_path / "root" / "small")
    with serving(tmp_path / "root", jobs=0) as live:
        url = f"{live.url}/api/v1/runs/small/checkpoints/pruned"
        first = CliRunner().invoke(app, ["download", url, "--out", str(tmp_path / "a"), "--json"])
        assert first.exit_code == 0, first.output
        assert set(json.loads(first.stdout)["files"]) == {"config.json", "model.safetensors"}
        second = CliRunner().invoke(
            app, ["download", "small/pruned", "--server", live.url, "--out", str(tmp_path / "b")]
        )
        assert second.exit_code == 0, second.output
        wrong = CliRunner().invoke(
            app, ["download", "small/no", "--server", live.url, "--out", str(tmp_path / "c")]
        )
        assert wrong.exit_code == 2
    ss.load(tmp_path / "a", build(SmallNet))
    shutil.rmtree(tmp_path / "a")


@pytest.mark.parametrize("text", ["small", "http://x/api/v1/runs/../checkpoints/a", "file:///etc", "a/b/c"])
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        parse_checkpoint(text, None)


def test_the_help_teaches() -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(app, ["serve", "--help"]).stdout)
    for word in ("streamsparse serve", "--new-token", "--allow-model", "SQLite", "dashboard"):
        assert word in text
