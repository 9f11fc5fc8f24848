"""The options of solve as a user types them: constraints, trade-offs, plans that are only looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streamsparse.cli.constraining import parse_constraints, parse_positions
from streamsparse.errors import UsageError
from streamsparse.solve import Constraints
from tests.cli.invoking import invoke, last_json
from tests.small import SmallNet, files_below, summed_run

QUICK = ("--method", "elimination")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("solving") / "run"
    summed_run(path, SmallNet)
    assert invoke("solve", path, "--budget", "params=0.5", *QUICK).exit_code == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_positions_parse() -> None:
    assert parse_positions(["a.b=3-5,12", "c=0", "a.b=1"], "--keep") == {"a.b": (3, 4, 5, 12, 1), "c": (0,)}
    assert parse_positions(None, "--keep") == {}
    assert parse_constraints(8, "0.1", ["a=1"], None, ["b*"]) == Constraints(8, 0.1, {"a": (1,)}, {}, ("b*",))


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a=5-3", "a=x", "a=1-", "a=-1", "a=1,,2"])
def test_malformed_positions(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_positions([text], "--drop")
    assert (raised.value.got, raised.value.where) == (text, "--drop")


def test_constraints_reach_the_plan(run: Path) -> None:
    options = ("--round-to", 2, "--min-channels", 0.5, "--keep", "conv2=1,5", "--drop", "conv2=0", "--leave", "fc2")
    result = invoke("solve", run, "--budget", "params=0.8", *options, *QUICK, "--json")
    keep = last_json(result)["solution"]["plan"]["keep"]
    assert set(keep) == {"conv1", "conv2"}
    assert {1, 5} <= set(keep["conv2"])
    assert 0 not in keep["conv2"]
    assert len(keep["conv2"]) in (4, 6)


def test_a_dry_run_prints_the_plan_and_writes_nothing(run: Path) -> None:
    before = files_below(run)
    looked_at = last_json(invoke("solve", run, "--budget", "macs=0.6", *QUICK, "--dry-run", "--json"))["plan"]
    shown = invoke("solve", run, "--channels", "conv1=3", *QUICK, "--dry-run")
    assert "predicted loss" in shown.stdout
    assert "regressions" not in shown.stdout.lower()
    other = invoke("solve", run, "--budget", "macs=0.6", "--method", "entropic", "--dry-run")
    assert "regressions to solve" in other.stdout.lower(), "its fronts are not there yet"
    assert files_below(run) == before
    assert (
        last_json(invoke("solve", run, "--budget", "macs=0.6", *QUICK, "--json"))["solution"]["plan"] == looked_at
    )


def test_trade_offs_decide_nothing(run: Path) -> None:
    before = files_below(run)
    whole = last_json(invoke("solve", run, "--front", *QUICK, "--json"))
    assert len(whole["points"]) == 20
    assert whole["loss_kind"] == "error"
    assert set(whole["points"][0]["counts"]) == {"conv1", "conv2", "fc1"}
    some = invoke("solve", run, "--budget", "params=0.5", "--budget", "macs=0.5", *QUICK)
    assert "params=0.5" in some.stdout
    assert "macs=0.5" in some.stdout
    assert files_below(run) == before


@pytest.mark.parametrize(
    "options",
    [
        ("--budget", "params=0.5", "--round-to", 0),
        ("--budget", "params=0.5", "--min-channels", "few"),
        ("--budget", "params=0.5", "--min-channels", -1),
        ("--budget", "params=0.5", "--keep", "conv1=9"),
        ("--budget", "params=0.5", "--keep", "conv1=1", "--drop", "conv1=1"),
        ("--budget", "params=0.5", "--leave", "layer4"),
        ("--budget", "max-loss=0.1"),
        ("--budget", "params=0.5", "--budget", "params=0.4", "--channels", "conv1=3"),
        ("--front", "--channels", "conv1=3"),
        ("--channels", "conv1=5", "--round-to", 4),
        ("--channels", "conv1=5", "--round-to", 4, "--dry-run"),
    ],
)
def test_bad_usage_says_what_and_where_and_changes_nothing(run: Path, options: tuple[object, ...]) -> None:
    before = files_below(run)
    result = invoke("solve", run, *options, *QUICK, "--json")
    assert result.exit_code == 2, result.output
    said = last_json(result)
    assert said["summary"]
    assert said["expected"]
    assert files_below(run) == before


def test_help_teaches_the_options() -> None:
    for command in ("solve", "prune"):
        text = " ".join(invoke(command, "--help").output.split())
        for option in ("--round-to", "--min-channels", "--keep", "--drop", "--leave", "max-loss"):
            assert option in text, (command, option)
