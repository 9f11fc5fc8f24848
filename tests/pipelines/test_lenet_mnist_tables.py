"""The tables say what the summary says."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.lenet_tables import comparison_rows, markdown_page, percent, print_comparison, print_summary
from pipelines.lenet_targets import E1, E1_FC_V2, Settings

TARGETS = (E1, E1_FC_V2)


def model(name: str, parameters: int, tuned: dict[int, float]) -> dict[str, Any]:
    return {
        "name": name, "parameters": parameters, "sparsity": 0.25, "macs": 123_456, "bytes": 2048,
        "accuracy_one_shot": 0.9876, "accuracy_independent": 0.9871, "accuracy_fine_tuned": tuned[0],
        "accuracy_fine_tuned_by_seed": tuned, "checkpoint": "here/one", "checkpoint_fine_tuned": "here/tuned",
    }  # fmt: skip


SUMMARY: dict[str, Any] = {
    "baseline": {"accuracy": 0.992, "parameters": 61_706, "macs": 416_520, "bytes": 4096},
    "models": [model("E1", 36_498, {0: 0.9901}), model("E1+fc-v2", 10_332, {0: 0.9890, 1: 0.9885, 2: 0.9893})],
    "seconds": {"capture": 1.25, "solve": 20.0},
}


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.99005, "99.00 %"), (1.0, "100.00 %"), (0.0, "0.00 %"), (None, "–")]
)
def test_percent(fraction: float | None, text: str) -> None:
    assert percent(fraction) == text


def test_ours_beside_the_papers() -> None:
    original, first, second = comparison_rows(SUMMARY, TARGETS)
    assert original == ("original", "61,706", "–", "99.20 %", "–", "–", "–")
    assert first == ("E1", "36,498", "98.71 %", "98.76 %", "98.49 %", "99.01 %", "99.03 %")
    assert second[-2:] == ("98.90 % (98.85 to 98.93)", "98.47 %")


def test_networks_and_targets_that_do_not_belong_together_are_not_shown() -> None:
    with pytest.raises(ValueError, match="zip"):
        comparison_rows(SUMMARY, TARGETS[:1])


def test_page() -> None:
    page = markdown_page(SUMMARY, Settings(TARGETS, repeats=3), 50_000)
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert {line.count("|") for line in table} == {8}
    assert "10 epochs on 50,000 images; in brackets the range over 3 seeds." in page
    assert "--images 20000 --seed 0 --fine-tune-epochs 10 --repeats 3" in page
    assert "without a teacher" in page
    assert "capture 1.2, solve 20.0" in page


def test_printed_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_comparison(SUMMARY, TARGETS)
    print_summary(SUMMARY)
    printed = capsys.readouterr().out
    for figure in ("36,498", "25.00 %", "123,456", "2.0 KiB", "98.76 %", "99.03 %", "1.2", "here/tuned"):
        assert figure in printed
