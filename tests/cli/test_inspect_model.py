"""`inspect --groups` of a model without a run, and of runs."""

from __future__ import annotations

import pytest
from torch import nn
from typer.testing import Result

from tests.cli.invoking import invoke, last_json
from tests.test_any_cnn import Unseen

LENET = ("--model", "pipelines.lenet:LeNet")


def inspect(*arguments: object) -> Result:
    return invoke("inspect", *arguments)


def test_a_model_and_the_shape_of_its_images_are_enough() -> None:
    found = last_json(inspect(*LENET, "--input", "1x28x28", "--groups", "--json"))
    assert found["input"] == [1, 28, 28]
    assert {group["name"] for group in found["graph"]["groups"]} == {"conv0", "conv1", "fc1", "fc2"}
    sizes = sum(group["size"] for group in found["graph"]["groups"])
    assert found["summary"]["positions"] == sizes
    assert (found["summary"]["groups"], found["summary"]["outputs"], found["summary"]["frozen"]) == (4, 10, 0)
    assert 0 < found["summary"]["max_trial_error"] <= 1e-9
    assert found["whole"] == {}


def test_tables_name_the_operation_and_the_line_that_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = inspect("--model", "torchvision:shufflenet_v2_x0_5", "--size", 64, "--groups").stdout
    assert "aten.chunk.default" in output
    assert "shufflenetv2.py:" in output
    assert "stage2.0.branch1.2" in output
    assert max(map(len, output.splitlines())) <= 80


def unseen() -> nn.Module:
    """For the command line below."""
    return Unseen()


def test_groups_that_solve_leaves_whole_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shape = ("--model", f"{__name__}:unseen", "--input", "3x12x12", "--groups")
    assert last_json(inspect(*shape, "--json"))["whole"].keys() == {"stem.0", "up"}
    assert "cannot be re-estimated: 'up.weight'" in " ".join(inspect(*shape).stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "neither"),
        (("RUN", *LENET), "Inspect looks at one thing"),
        (LENET, "--groups"),
        ((*LENET, "--groups"), "how large"),
        ((*LENET, "--groups", "--input", "1x0x28"), "does not parse"),
        ((*LENET, "--groups", "--input", "1x28x28", "--size", "28"), "given twice"),
        (("RUN", "--size", "28"), "knows the shape"),
    ],
)
def test_contradicting_requests_are_refused(arguments: tuple[str, ...], words: str) -> None:
    result = inspect(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert last_json(inspect(*arguments, "--json"))["error"] == "UsageError"


def test_dry_run_follows_nothing() -> None:
    found = last_json(inspect(*LENET, "--groups", "--input", "1x28x28", "--dry-run", "--json"))
    assert found == {"plan": {"model": LENET[1], "input": [1, 28, 28]}}
