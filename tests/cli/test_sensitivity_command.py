"""`streamsparse sensitivity` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.lenet import LeNet
from tests.cli.test_commands import invoke, last_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with fronts, over 40 of 60 images."""
    folder = tmp_path_factory.mktemp("sensitivity")
    torch.manual_seed(0)
    save_file(LeNet().state_dict(), folder / "lenet.safetensors")
    images = np.random.default_rng(0).standard_normal((60, 1, 28, 28), dtype=np.float32)
    np.savez(folder / "images.npz", images=images)
    run = folder / "run"
    result = invoke(
        "prune", run, "--model", "pipelines.lenet:LeNet", "--weights", folder / "lenet.safetensors",
        "--data", f"npz:{folder / 'images.npz'}", "--images", 40, "--method", "elimination",
        "--channels", "conv1=8,fc1=40", "--stages", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return run


def test_help_teaches_by_example() -> None:
    result = invoke("sensitivity", "--help")
    assert result.exit_code == 0
    for text in ("streamsparse sensitivity", "--json", "--dry-run", "--by", "fisher", "nats"):
        assert text in result.output
    assert "sensitivity" in invoke("--help").output


def test_groups_are_measured_once(finished: Path) -> None:
    planned = last_json(invoke("sensitivity", finished, "--images", 20, "--dry-run", "--json"))
    first = last_json(invoke("sensitivity", finished, "--images", 20, "--json"))
    assert {name: one["counts"] for name, one in first["sensitivities"].items()} == planned["counts"]
    assert planned["passes"] == sum(len(one["losses"]) for one in first["sensitivities"].values())
    assert set(first["sensitivities"]) == {"conv0", "conv1", "fc1", "fc2"}
    assert first["request"]["unseen"] is True
    assert (first["request"]["measure"], first["request"]["by"]) == ("divergence", "kl")
    assert "sensitivity" in first["seconds"]
    again = last_json(invoke("sensitivity", finished, "--images", 20, "--json"))
    assert again["sensitivities"] == first["sensitivities"]
    assert "sensitivity" not in again["seconds"]


def test_the_table_says_what_it_shows(finished: Path) -> None:
    shown = invoke("sensitivity", finished, "--images", 30, "--by", "fisher").stdout
    assert "by fisher, on 30 images of the calibration" in " ".join(shown.split())
    assert "fc1" in shown
    assert "120" not in shown  # the whole group is no cut


def test_dry_run_touches_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert "passes over 256 images" in invoke("sensitivity", finished, "--dry-run").stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("RUN",), "RunNotFoundError"),
        (("FINISHED", "--levels", "much"), "UsageError"),
        (("FINISHED", "--levels", "0.3,0.1"), "UsageError"),
        (("FINISHED", "--by", "magic"), "UsageError"),
        (("FINISHED", "--data", "npz:missing.npz"), "DataError"),
    ],
)
def test_bad_usage_exits_with_2(tmp_path: Path, finished: Path, options: tuple[str, ...], error: str) -> None:
    names = {"RUN": str(tmp_path / "run"), "FINISHED": str(finished)}
    result = invoke("sensitivity", *(names.get(option, option) for option in options), "--json")
    assert result.exit_code == 2, result.output
    assert last_json(result)["error"] == error
    assert json.dumps(last_json(result))
    assert not (tmp_path / "run").exists()


def test_improve_as_typed(finished: Path) -> None:
    """It decides what `solve` does not, keeps to the budget, and the plan can be looked at before."""
    planned = last_json(invoke("improve", finished, "--budget", "params=0.3", "--method", "elimination",
                               "--dry-run", "--json"))  # fmt: skip
    result = invoke("improve", finished, "--budget", "params=0.3", "--method", "elimination", "--images", 20,
                    "--rounds", 2, "--json")  # fmt: skip
    found = last_json(result)["improved"]
    assert found["solution"]["plan"]["costs"]["parameters"] <= 0.3 * 61_706
    assert found["losses"] == sorted(found["losses"], reverse=True)
    assert found["solution"]["plan"]["measured_loss"] == found["losses"][-1]
    assert set(planned["plan"]["keep"]) == set(found["solution"]["plan"]["keep"])
    refused = invoke("improve", finished, "--budget", "max-loss=0.1")
    assert refused.exit_code == 2
    assert "bounds a loss" in refused.output
    assert "streamsparse improve" in invoke("improve", "--help").output
