"""The comparison of one capture with new ones, on few images of the embedded MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import transfer
from pipelines.networks import checked_sparsities
from pipelines.transfer_tables import page
from streamsparse.errors import UsageError

REQUEST = transfer.Request("lenet", 600, (0.6, 0.9), seeds=1, stages=2, test_images=300, method="elimination")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("transfer")
    return folder, transfer.study(REQUEST, folder)


def test_three_ways_to_the_same_sizes(kept: tuple[Path, dict[str, Any]]) -> None:
    found = kept[1]
    rows = {(row["way"], row["sparsity"]): row for row in found["rows"]}
    assert set(rows) == {(way, sparsity) for way in transfer.WAYS for sparsity in (0.6, 0.9)}
    for (way, sparsity), row in rows.items():
        assert row["parameters"] <= (1 - sparsity) * found["original_parameters"], way
        assert row["pruned_accuracy"] > 0.85, row
    # One capture serves both budgets: the same channels with and without the refit, other weights.
    alone, in_order, steps = (rows[way, 0.9] for way in transfer.WAYS)
    assert alone["counts"] == in_order["counts"]
    assert alone["divergence"] != in_order["divergence"]
    # The first step is taken from the original, the second from the network that is smaller by then.
    first = rows[transfer.IN_STEPS, 0.6]
    assert first["divergence"] == pytest.approx(rows[transfer.IN_ORDER, 0.6]["divergence"], rel=1e-3)
    assert all(steps["counts"][group] <= count for group, count in first["counts"].items())
    text = page(found, {"cores": 2}, "the command")
    assert "| in steps |" in text
    assert f"| {1000 * alone['divergence']:.1f} |" in text


@pytest.mark.slow
def test_a_killed_call_goes_on(kept: tuple[Path, dict[str, Any]]) -> None:
    """What is there is used again: the same networks."""
    folder, found = kept
    again = transfer.study(REQUEST, folder)
    assert [{**row, "seconds": 0} for row in again["rows"]] == [{**row, "seconds": 0} for row in found["rows"]]


@pytest.mark.parametrize("sparsities", [[], [0.5, 1.0], [-0.1]])
def test_what_is_no_fraction_is_refused(sparsities: list[float]) -> None:
    with pytest.raises(UsageError, match="0 < X < 1"):
        checked_sparsities(sparsities)
    assert checked_sparsities([0.9, 0.5, 0.5]) == (0.5, 0.9)
