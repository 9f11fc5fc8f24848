"""Budgets of latency: the price of every architecture, and what is chosen by it."""

from __future__ import annotations

from itertools import product
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.errors import BudgetError
from streamsparse.kernels.costs import CostModel
from streamsparse.kernels.latencies import LatencyModel, LayerTable
from streamsparse.solve import Budget, allocate, exhaustive, parse_budget
from streamsparse.solve.architecture import Architecture, Choices, LatencyTable
from tests.solve.test_allocation import MODELS, loss_of, losses_of


def latency_of(costs: CostModel, random: np.random.Generator) -> LatencyModel:
    """Random tables that grow in both widths, of every weight with two dimensions or more."""
    weights = [name for name in costs.tensors if name.endswith(".weight") and "norm" not in name]
    whole = costs.tensor_widths({}, weights).astype(int)
    tables = []
    for name, (outputs, inputs) in zip(weights, whole[:, :2].tolist(), strict=True):
        widths = [tuple(sorted({1, -(-size // 2), size})) for size in (outputs, inputs)]
        seconds = random.uniform(1e-6, 1e-3, tuple(map(len, widths))).cumsum(axis=0).cumsum(axis=1)
        tables.append(LayerTable(name.removesuffix(".weight"), *widths, seconds, int(random.integers(1, 50))))
    layers = sum(float(table.seconds[-1, -1]) for table in tables)
    return LatencyModel(costs, tuple(tables), layers * random.uniform(0.5, 2.0), "cpu", 1, 1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[LatencyModel, dict[str, np.ndarray], np.random.Generator]:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    costs = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    losses = {
        name: np.append(np.sort(random.uniform(0.01, 1, size))[::-1], 0.0)
        for name, size in zip(costs.groups, costs.sizes, strict=True)
    }
    return latency_of(costs, random), losses, random


@settings(deadline=None, max_examples=40)
@given(problems())
def test_prices_are_those_of_the_model_however_one_gets_there(
    problem: tuple[LatencyModel, dict[str, np.ndarray], np.random.Generator],
) -> None:
    model, losses, random = problem
    choices = [Choices.of(name, loss, model.costs) for name, loss in losses.items()]
    found = Architecture(LatencyTable(model, choices), [len(one.counts) - 1 for one in choices])
    assert found.cost == pytest.approx(1e9 * model.whole_seconds)
    for _ in range(6):
        group = int(random.integers(len(choices)))
        place = int(random.integers(len(choices[group].counts)))
        expected = found.cost + found.cost_changes(group)[place]
        found.move(group, place)
        assert found.cost == pytest.approx(expected)
        assert found.cost == pytest.approx(1e9 * float(model.seconds(found.counts)))


def optimum(model: LatencyModel, losses: dict[str, np.ndarray], limit: float) -> float:
    """The least loss within so many seconds, of all architectures."""
    table = np.array(list(product(*(range(1, size + 1) for size in model.costs.sizes))))
    predicted = sum((losses[name][table[:, place]] for place, name in enumerate(model.costs.groups)), np.zeros(1))
    return float(predicted[model.seconds(table) <= limit].min())


def limit_at(model: LatencyModel, share: float) -> float:
    """Seconds between the smallest architecture's and the whole one's."""
    ends = [float(model.seconds(counts)) for counts in (dict.fromkeys(model.costs.groups, 1), {})]
    return ends[0] + share * (ends[1] - ends[0]) + 2e-9


@settings(deadline=None, max_examples=30)
@given(problems(), st.floats(0.05, 1))
def test_the_least_loss_within_a_time(
    problem: tuple[LatencyModel, dict[str, np.ndarray], np.random.Generator], share: float
) -> None:
    model, losses, _ = problem
    limit = limit_at(model, share)
    counts = allocate(Budget("latency", limit, "cpu"), losses, model.costs, latencies=model)
    assert float(model.seconds(counts)) <= limit
    assert loss_of(losses, counts) <= optimum(model, losses, limit - 1e-9) + 1e-12


def test_the_search_of_large_networks_comes_near_the_optimum_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same problems every time."""
    monkeypatch.setattr(exhaustive, "WALKS", 0)
    random = np.random.default_rng(0)
    excess = []
    for _ in range(60):
        costs = MODELS[random.choice(sorted(MODELS))]
        model, losses = latency_of(costs, random), losses_of(costs, random, 1.0)
        limit = limit_at(model, random.uniform(0.05, 1))
        counts = allocate(Budget("latency", limit, "cpu"), losses, costs, latencies=model)
        assert float(model.seconds(counts)) <= limit
        excess.append(loss_of(losses, counts) / max(optimum(model, losses, limit), 1e-12) - 1)
    assert np.mean(np.array(excess) < 1e-9) >= 0.9
    assert max(excess) < 0.3


@settings(deadline=None, max_examples=30)
@given(problems())
def test_the_least_possible_time_is_refused_below_and_met_as_it_is_said(
    problem: tuple[LatencyModel, dict[str, np.ndarray], np.random.Generator],
) -> None:
    model, losses, _ = problem
    smallest = dict.fromkeys(losses, 1)
    nanoseconds = 1e9 * float(model.seconds(smallest))
    with pytest.raises(BudgetError, match="at least") as refused:
        allocate(Budget("latency", (floor(nanoseconds) - 1) / 1e9, "cpu"), losses, model.costs, latencies=model)
    said = int(str(refused.value).partition("at least ")[2].split()[0].replace(",", ""))
    assert said == pytest.approx(nanoseconds, abs=1)
    for limit in (nanoseconds - 0.3, nanoseconds, said):  # near it: an answer or a refusal, and no end without one
        try:
            found = allocate(Budget("latency", limit / 1e9, "cpu"), losses, model.costs, latencies=model)
        except BudgetError:
            assert limit < said
        else:
            assert 1e9 * float(model.seconds(found)) <= limit + 1


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("latency=0.5@cpu", Budget("latency", 0.5, "cpu", relative=True)),
        ("latency=5ms@cuda:1", Budget("latency", 5e-3, "cuda:1")),
        ("latency=1.5s@cpu", Budget("latency", 1.5, "cpu")),
        ("latency=300us@cpu", Budget("latency", 300 * 1e-6, "cpu")),
    ],
)
def test_forms(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["latency=0.5", "latency=0.5@", "latency=2@cpu", "latency=@cpu", "latency=-1ms@cpu", "latency=nans@cpu"]
)
def test_what_does_not_parse(text: str) -> None:
    with pytest.raises(BudgetError, match="DEVICE"):
        parse_budget(text)


def test_a_time_that_cannot_be_met_says_what_is_the_least() -> None:
    costs = MODELS["SmallNet"]
    model = latency_of(costs, np.random.default_rng(0))
    losses = {name: np.linspace(1, 0, size + 1) for name, size in zip(costs.groups, costs.sizes, strict=True)}
    with pytest.raises(BudgetError, match="nanoseconds on cpu"):
        allocate(Budget("latency", 1e-9, "cpu"), losses, costs, latencies=model)
    with pytest.raises(BudgetError, match="needs latencies"):
        allocate(Budget("latency", 0.5, "cpu", relative=True), losses, costs)
