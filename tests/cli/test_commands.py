"""The commands as a user types them, in process, on a small network and real files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.lenet import LeNet
from tests.cli.invoking import invoke, last_json

COMMANDS = ("demo", "prune", "capture", "accumulate", "solve", "refit", "write", "evaluate", "inspect")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of an untrained LeNet and random images in an .npz archive."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    save_file(LeNet().state_dict(), folder / "lenet.safetensors")
    random = np.random.default_rng(0)
    images = random.standard_normal((60, 1, 28, 28), dtype=np.float32)
    np.savez(folder / "images.npz", images=images, labels=random.integers(0, 10, 60))
    return {"weights": str(folder / "lenet.safetensors"), "data": f"npz:{folder / 'images.npz'}"}


def model_options(files: dict[str, str]) -> tuple[str, ...]:
    return ("--model", "pipelines.lenet:LeNet", "--weights", files["weights"], "--data", files["data"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> Path:
    """A run with all stages behind it."""
    run = tmp_path_factory.mktemp("runs") / "lenet"
    result = invoke("prune", run, *model_options(files), "--channels", "conv1=8,fc1=40", "--batch-size", 20)
    assert result.exit_code == 0, result.output
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"streamsparse {command}" in result.output
    for option in ("--json", "--dry-run"):
        assert option in result.output


def test_help_lists_every_command() -> None:
    listed = invoke("--help").output
    assert all(command in listed for command in COMMANDS)


def test_stage_by_stage(tmp_path: Path, files: dict[str, str]) -> None:
    run = tmp_path / "run"
    captured = last_json(invoke("capture", run, *model_options(files), "--batch-size", 20, "--json"))
    assert captured["report"]["images"] == 60
    again = last_json(invoke("capture", run, *model_options(files), "--batch-size", 20, "--json"))
    assert (again["report"]["images"], again["report"]["reused_images"]) == (0, 60)
    assert last_json(invoke("accumulate", run, "--json"))["report"]["layers"] == 4
    assert last_json(invoke("accumulate", run, "--json"))["report"]["reused_layers"] == 4
    solved = last_json(invoke("solve", run, "--budget", "params=0.3", "--json"))
    assert solved["solution"]["plan"]["costs"]["parameters"] <= 0.3 * 61_706
    refitted = last_json(invoke("refit", run, "--stages", 2, "--json"))
    assert refitted["solution"]["mode"] == "sequential"
    written = last_json(invoke("write", run, "--json"))["checkpoint"]
    assert written["weights_bytes"] < 0.4 * written["original_bytes"]
    evaluated = last_json(invoke("evaluate", run, "--data", files["data"], "--json"))["evaluation"]
    assert evaluated["comparison"]["images"] == 60
    assert evaluated["pruned_costs"]["parameters"] == solved["solution"]["plan"]["costs"]["parameters"]


def test_prune_writes_what_load_reads(finished: Path) -> None:
    import streamsparse

    model = streamsparse.load(finished / "checkpoints" / "pruned", LeNet())
    assert (model.conv1.out_channels, model.fc1.in_features, model.fc1.out_features) == (8, 200, 40)
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_inspect_says_what_is_there(finished: Path) -> None:
    found = last_json(invoke("inspect", finished, "--json"))
    assert {stage["state"] for stage in found["stages"]} == {"complete"}
    assert found["manifest"]["data"]["images"] == 60
    groups = last_json(invoke("inspect", finished, "--groups", "--json"))["graph"]["groups"]
    assert [group["name"] for group in groups] == ["conv0", "conv1", "fc1", "fc2"]
    assert "conv1" in invoke("inspect", finished, "--groups").stdout


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("accumulate", ()),
        ("solve", ("--budget", "params=0.5")),
        ("refit", ()),
        ("write", ()),
        ("evaluate", ("--data", "DATA")),
        ("inspect", ()),
    ],
)
def test_dry_run_touches_nothing(
    finished: Path, files: dict[str, str], command: str, options: tuple[str, ...]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    chosen = [files["data"] if option == "DATA" else option for option in options]
    assert invoke(command, finished, *chosen, "--dry-run").exit_code == 0
    assert last_json(invoke(command, finished, *chosen, "--dry-run", "--json"))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("command", ["capture", "prune"])
def test_dry_run_of_a_new_run_makes_no_directory(tmp_path: Path, files: dict[str, str], command: str) -> None:
    result = invoke(command, tmp_path / "run", *model_options(files), "--dry-run", "--json")
    assert last_json(result)["raw_bytes"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("accumulate", "RUN"), "RunNotFoundError"),
        (("solve", "RUN", "--budget", "params=0.5"), "RunNotFoundError"),
        (("inspect", "RUN"), "RunNotFoundError"),
        (("write", "RUN"), "RunNotFoundError"),
        (("write", "RUN", "--format", "pickle"), "UsageError"),
        (("accumulate", "RUN", "--memory-limit", "much"), "UsageError"),
        (("solve", "FINISHED"), "UsageError"),
        (("solve", "FINISHED", "--budget", "size=1"), "BudgetError"),
        (("solve", "FINISHED", "--budget", "params=0.0001"), "BudgetError"),
        (("solve", "FINISHED", "--channels", "conv9=1"), "UsageError"),
        (("solve", "FINISHED", "--channels", "conv1=17"), "UsageError"),
        (("solve", "FINISHED", "--channels", "conv1"), "UsageError"),
        (("solve", "FINISHED", "--budget", "params=0.5", "--method", "magic"), "UsageError"),
        (("evaluate", "FINISHED", "--data", "DATA", "--name", "other"), "StageMissingError"),
    ],
)
def test_bad_usage_exits_with_2_and_says_why(
    tmp_path: Path, finished: Path, files: dict[str, str], arguments: tuple[str, ...], error: str
) -> None:
    names = {"RUN": str(tmp_path / "run"), "FINISHED": str(finished), "DATA": files["data"]}
    result = invoke(*(names.get(argument, argument) for argument in arguments), "--json")
    assert result.exit_code == 2, result.output
    said = last_json(result)
    assert said["error"] == error
    assert said["summary"]
    assert said["expected"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--shard", "0/2"),
        ("--shard", "3/2"),
        ("--dtype", "int8"),
        ("--codec", "magic"),
        ("--model", "pipelines.lenet:Nothing"),
        ("--weights", "missing.safetensors"),
        ("--data", "npz:missing.npz"),
    ],
)
def test_bad_capture_options_leave_nothing_behind(
    tmp_path: Path, files: dict[str, str], options: tuple[str, str]
) -> None:
    result = invoke("capture", tmp_path / "run", *model_options(files), *options)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "run").exists()


def test_missing_option_is_bad_usage() -> None:
    assert invoke("capture", "run").exit_code == 2
    assert invoke("nonsense").exit_code == 2


def test_impossible_request_is_refused_before_capture(tmp_path: Path, files: dict[str, str]) -> None:
    result = invoke("prune", tmp_path / "run", *model_options(files), "--channels", "conv1=99")
    assert result.exit_code == 2
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_the_package_is_the_command() -> None:
    """`python -m streamsparse` of the interpreter that is meant."""
    done = subprocess.run(
        [sys.executable, "-m", "streamsparse", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "No such command 'nonsense'" in done.stderr
