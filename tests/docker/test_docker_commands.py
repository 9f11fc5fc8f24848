"""Every command line of docker/ means something to the real command line, and shards add up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker
from typer.testing import CliRunner

from streamsparse.cli.app import app
from streamsparse.cli.options import parse_shard
from tests.docker.files import (
    DOCKER,
    compose_commands,
    kubernetes_commands,
    pod_specs,
    readme_commands,
    readme_streamsparse_commands,
    run_script,
)

STREAMSPARSE: Any = typer.main.get_command(app)
CAPTURE = {"RUN": "s3://bucket/run", "WEIGHTS": "w.safetensors", "DATA": "imagefolder:/data"}


def parse(words: list[str]) -> dict[str, Any]:
    """Read a command line as the program would, and run nothing; returns its parameters.

    Raises:
        Exception: click's, or that of Typer's own click: it has no such command, option or argument.
    """
    if words[0] == "dask":
        command = {"scheduler": dask_scheduler, "worker": dask_worker}[words[1]]
    else:
        assert words[0] == "streamsparse"
        command = STREAMSPARSE.commands[words[1]]
    return dict(command.make_context(words[1], words[2:]).params)


FIXED = [*compose_commands().items(), *kubernetes_commands().items()]


@pytest.mark.parametrize(("where", "words"), FIXED, ids=[where for where, _ in FIXED])
def test_commands_of_services_and_pods_parse(where: str, words: list[str]) -> None:
    parse(words)


def test_all_images_are_started_somewhere() -> None:
    started = {words[1] for _, words in FIXED}
    assert started == {"scheduler", "worker", "serve", "accumulate", "solve"}


@pytest.mark.parametrize("words", list(readme_streamsparse_commands()), ids=lambda words: " ".join(words)[:60])
def test_commands_of_the_readme_parse(words: list[str]) -> None:
    parse(words)


def test_the_readme_walks_through_the_whole_use() -> None:
    commands = {words[1] for words in readme_streamsparse_commands()}
    assert commands >= {"serve", "capture", "accumulate", "solve", "download"}
    for words in readme_commands():
        for word in words:
            if word.startswith("docker/") and not word.endswith((".env", "tokens")):
                assert (DOCKER.parent / word).exists(), word


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises(Exception, match="no-such-option"):
        parse(["streamsparse", "accumulate", "run", "--no-such-option"])
    with pytest.raises(Exception, match="no-such-option"):
        parse(["dask", "worker", "tcp://scheduler:8786", "--no-such-option"])


@pytest.mark.parametrize("where", ["compose service", "Deployment/streamsparse service"])
def test_the_service_would_start_with_its_arguments(where: str) -> None:
    """Host, tokens and a database fit together: the service itself says so."""
    words = dict(FIXED)[where]
    done = CliRunner().invoke(app, [*words[1:], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["root"].startswith("s3://")
    alone = [word for word in words[1:] if word not in ("--tokens", words[words.index("--tokens") + 1])]
    assert CliRunner().invoke(app, [*alone, "--dry-run"]).exit_code == 2


def test_a_job_array_captures_every_shard_once(tmp_path: Path) -> None:
    script = DOCKER / "slurm" / "capture.sbatch"
    first, last = map(int, re.findall(r"#SBATCH --array=(\d+)-(\d+)", script.read_text())[0])
    found = []
    for index in range(first, last + 1):
        status, calls = run_script(script, tmp_path, SLURM_ARRAY_TASK_ID=str(index), SLURM_JOB_ID="1", **CAPTURE)
        assert (status, len(calls)) == (0, 1)
        found.append(parse_shard(parse(["streamsparse", *calls[0]])["shard"]))
    assert found == [(index, last) for index in range(last)]


def test_one_job_of_an_array_repeats_its_own_shard(tmp_path: Path) -> None:
    script = DOCKER / "slurm" / "capture.sbatch"
    alone = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_JOB_ID": "1"}
    _, calls = run_script(script, tmp_path, **alone, **CAPTURE)
    assert calls[0][calls[0].index("--shard") + 1] == "3/8"
    for wrong in ("0", "9"):
        status, calls = run_script(script, tmp_path, **(alone | {"SLURM_ARRAY_TASK_ID": wrong}), **CAPTURE)
        assert (status, calls) == (2, [])


@pytest.mark.parametrize("name", ["capture.sbatch", "solve.sbatch"])
def test_a_job_out_of_time_goes_back_into_the_queue(tmp_path: Path, name: str) -> None:
    """Slurm sends USR1 to the batch shell; work on the nodes goes on meanwhile, until Slurm ends it."""
    waiting = 'touch "$STARTED"; exec sleep 60\n'
    for tool, text in {"srun": waiting, "dask": waiting, "scontrol": 'echo "$@" > "$NOTES"\n'}.items():
        (tmp_path / tool).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / tool).chmod(0o755)
    paths = {"STARTED": str(tmp_path / "started"), "NOTES": str(tmp_path / "notes")}
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2"}
    environment = {**CAPTURE, **slurm, **paths, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(DOCKER / "slurm" / name)]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True) as process:
        try:
            _wait_for(Path(paths["STARTED"]))
            process.send_signal(signal.SIGUSR1)
            _wait_for(Path(paths["NOTES"]))
            assert Path(paths["NOTES"]).read_text().split() == ["requeue", "77"]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and (path.name == "started" or path.read_text())):
        assert time.monotonic() < deadline, path.name
        time.sleep(0.05)


def test_an_indexed_job_captures_every_shard_once(tmp_path: Path) -> None:
    job = yaml.safe_load((DOCKER / "kubernetes" / "capture.yaml").read_text())["spec"]
    assert job["completionMode"] == "Indexed"
    (container,) = dict(pod_specs())["Job/capture-r18"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    (script,) = container["args"]
    found = []
    for index in range(job["completions"]):
        _, calls = run_script(script, tmp_path, JOB_COMPLETION_INDEX=str(index), **variables)
        found.append(parse_shard(parse(["streamsparse", *calls[0]])["shard"]))
    assert found == [(index, job["completions"]) for index in range(job["completions"])]


def test_commands_of_the_solve_script_parse() -> None:
    text = (DOCKER / "slurm" / "solve.sbatch").read_text().replace("\\\n", " ")
    lines = re.findall(r'"\$\{container\[@\]\}" ((?:dask|streamsparse) .*?) &$', text, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        words = line.replace('"${interface[@]}"', "--interface lo").split()
        parse([re.sub(r'"\$\{?\w+.*?\}?"', "1GiB", word) for word in words])
