"""Budgets: parsing, allocation, and what no architecture meets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.errors import BudgetError, UsageError
from streamsparse.kernels.costs import CostModel
from streamsparse.network import find_groups
from streamsparse.network.costs import cost_model
from streamsparse.solve import Budget, allocate, parse_budget
from streamsparse.solve.allocation import whole_units
from streamsparse.solve.budget import cost_of, least_count
from streamsparse.solve.plan import check_request
from tests.small import SmallNet, build

SIZES = {"conv1": 6, "conv2": 8, "fc1": 12}


@pytest.fixture(scope="module")
def costs() -> CostModel:
    model, example = build(SmallNet), torch.zeros(1, 1, 8, 8)
    return cost_model(model, find_groups(model, example), example)


@st.composite
def errors_by_group(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Falling errors with bumps: a front's held-out errors need not be monotone."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bump = draw(st.sampled_from([0.0, 0.2]))
    return {
        name: np.sort(random.uniform(0, 1, size + 1) ** 3)[::-1] + bump * random.uniform(0, 1, size + 1)
        for name, size in SIZES.items()
    }


@settings(deadline=None, max_examples=60)
@given(errors_by_group(), st.sampled_from(["params", "macs", "bytes"]), st.floats(0.05, 1.0), st.booleans())
def test_a_budget_is_met_and_used(
    costs: CostModel, errors: dict[str, np.ndarray], kind: str, fraction: float, absolute: bool
) -> None:
    whole = cost_of(costs, kind, {})
    least = cost_of(costs, kind, dict.fromkeys(SIZES, 1))
    limit = max(fraction * whole, least)
    budget = Budget(kind, limit if absolute and limit > 1 else limit / whole)
    counts = allocate(budget, errors, costs)
    allowed = whole_units(budget.absolute(costs))
    assert counts.keys() == SIZES.keys()
    assert cost_of(costs, kind, counts) <= allowed
    for name, count in counts.items():
        assert 1 <= count <= SIZES[name]
        if count < SIZES[name] and cost_of(costs, kind, {**counts, name: count + 1}) <= allowed:
            assert errors[name][count + 1] >= errors[name][count], "a better architecture meets the budget too"


@settings(deadline=None, max_examples=60)
@given(errors_by_group(), st.floats(0, 1.5))
def test_max_error_keeps_the_fewest_channels_within_it(
    costs: CostModel, errors: dict[str, np.ndarray], bound: float
) -> None:
    for name, count in allocate(Budget("max-error", bound), errors, costs).items():
        assert all(errors[name][k] <= bound for k in range(count, SIZES[name] + 1)) or count == SIZES[name]
        none_is = errors[name][-1] > bound  # then everything stays
        assert count == 1 or none_is or errors[name][count - 1] > bound


def test_a_bound_on_errors_that_given_counts_exceed_is_refused(costs: CostModel) -> None:
    errors = {name: np.linspace(1, 0, size + 1) for name, size in SIZES.items()}
    bound = Budget("max-error", 0.2)
    fitting = allocate(bound, errors, costs, {"conv2": 7})
    assert fitting == {"conv1": 5, "conv2": 7, "fc1": 10}
    with pytest.raises(BudgetError, match=r"0\.5 in 'conv2' with 4 channels; 0\.333 in 'conv1' with 4") as raised:
        allocate(bound, errors, costs, {"conv2": 4}, allowed={"conv1": np.array([2, 4])})
    assert "fc1" not in str(raised.value)


def test_groups_that_stay_whole_are_within_every_bound(costs: CostModel) -> None:
    errors = {name: np.linspace(1, 1e-9, size + 1) for name, size in SIZES.items()}  # round-off where all stay
    assert allocate(Budget("max-error", 0.0), errors, costs, {"conv2": 8}) == SIZES


def test_counts_by_hand_are_kept(costs: CostModel) -> None:
    errors = {name: np.linspace(1, 0, size + 1) for name, size in SIZES.items()}
    counts = allocate(Budget("params", 0.3), errors, costs, {"conv2": 7})
    assert counts["conv2"] == 7
    assert cost_of(costs, "params", counts) <= 0.3 * cost_of(costs, "params", {})


def test_least_count() -> None:
    assert least_count(np.array([1.0, 0.5, 0.1, 0.2, 0.0]), 0.15) == 4
    assert least_count(np.array([1.0, 0.5, 0.1, 0.2, 0.0]), 0.6) == 1
    assert least_count(np.array([1.0, 0.5, 0.4]), 0.1) == 2


@pytest.mark.parametrize("text", ["params=0.001", "macs=1.5", "bytes=100"])
def test_impossible_budgets_say_what_is_possible(costs: CostModel, text: str) -> None:
    errors = {name: np.linspace(1, 0, size + 1) for name, size in SIZES.items()}
    with pytest.raises(BudgetError) as raised:
        allocate(parse_budget(text), errors, costs)
    assert "at least" in str(raised.value.got)
    assert raised.value.remedy is not None


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("params=0.2", Budget("params", 0.2)),
        ("macs=5e5", Budget("macs", 5e5)),
        ("bytes=1000", Budget("bytes", 1000)),
        ("sparsity=0.75", Budget("params", 0.25)),
        ("max-error=0", Budget("max-error", 0)),
    ],
)
def test_budgets_parse(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    ["", "params", "params=", "params=0", "params=-1", "params=nan", "params=inf", "size=1", "sparsity=1",
     "sparsity=-0.1", "max-error=-1", "max-error=nan", "0.2", "params=0.2=3"],
)  # fmt: skip
def test_malformed_budgets_are_refused(text: str) -> None:
    with pytest.raises(BudgetError) as raised:
        parse_budget(text)
    assert raised.value.got == text
    assert "max-error=X" in str(raised.value.expected)


@pytest.mark.parametrize(
    ("channels", "where"),
    [({"conv9": 1}, "conv9"), ({"conv1": 0}, "conv1"), ({"conv1": 7}, "conv1"), ({}, "small")],
)
def test_impossible_requests(channels: dict[str, int], where: str) -> None:
    with pytest.raises(UsageError, match=where):
        check_request(None, channels, SIZES)
