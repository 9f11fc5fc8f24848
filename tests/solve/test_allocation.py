"""Allocation against brute force and against steepest descent, on every kind of budget."""

from __future__ import annotations

from itertools import product
from time import process_time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.errors import BudgetError
from streamsparse.kernels.costs import CostModel
from streamsparse.network import find_groups
from streamsparse.network.costs import cost_model
from streamsparse.solve import Budget, allocate, exhaustive
from streamsparse.solve.allocation import whole_units
from streamsparse.solve.architecture import Architecture, Choices, CostTable
from streamsparse.solve.budget import cost_of
from tests.small import ConcatNet, SmallNet, build


class ResidualNet(nn.Module):
    """A stream that one group carries through a sum: its own convolution is quadratic in its count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3, padding=1)
        self.inner = nn.Conv2d(5, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 5, 3, padding=1)
        self.square = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.stem(images))
        features = torch.relu(features + self.outer(torch.relu(self.inner(features))))
        features = torch.relu(features + self.square(features))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def model_of(kind: type[nn.Module]) -> CostModel:
    model, example = build(kind), torch.zeros(1, 1, 8, 8)
    return cost_model(model, find_groups(model, example), example)


MODELS = {kind.__name__: model_of(kind) for kind in (SmallNet, ConcatNet, ResidualNet)}


def losses_of(costs: CostModel, random: np.random.Generator, power: float) -> dict[str, np.ndarray]:
    """Falling, not convex."""
    return {
        name: np.append(np.sort(random.uniform(0.01, 1, size) ** power)[::-1] * 10 ** random.uniform(-2, 0), 0.0)
        for name, size in zip(costs.groups, costs.sizes, strict=True)
    }


@st.composite
def problems(draw: st.DrawFn) -> tuple[CostModel, dict[str, np.ndarray], str, int]:
    """A cost model, falling losses that need not be convex, a quantity, and a whole limit that can be met."""
    costs = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    losses = losses_of(costs, random, draw(st.sampled_from([0.3, 1.0, 3.0])))
    kind = draw(st.sampled_from(["params", "macs", "bytes"]))
    whole, least = cost_of(costs, kind, {}), cost_of(costs, kind, dict.fromkeys(costs.groups, 1))
    return costs, losses, kind, whole_units(least + draw(st.floats(0, 1)) * (whole - least))


def loss_of(losses: dict[str, np.ndarray], counts: dict[str, int]) -> float:
    return float(sum(losses[name][count] for name, count in counts.items()))


def every_architecture(costs: CostModel, kind: str, losses: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Cost and loss of all of them."""
    table = np.array(list(product(*(range(1, size + 1) for size in costs.sizes))))
    spent = {"params": costs.parameters, "macs": costs.macs, "bytes": costs.bytes}[kind](table)
    return spent, sum(
        (losses[name][table[:, place]] for place, name in enumerate(costs.groups)), np.zeros(len(table))
    )


def steepest_descent(losses: dict[str, np.ndarray], costs: CostModel, kind: str, limit: float) -> dict[str, int]:
    """The plain reference, one count of one group after the other."""
    counts = {name: len(loss) - 1 for name, loss in losses.items()}
    current = cost_of(costs, kind, counts)
    while current > limit:
        steps = []
        for name, loss in losses.items():
            for count in range(counts[name] - 1, 0, -1):
                saved = current - cost_of(costs, kind, {**counts, name: count})
                steps.append(((loss[count] - loss[counts[name]]) / min(saved, current - limit), name, count))
        _, name, count = min(steps, key=lambda step: step[0])
        counts[name] = count
        current = cost_of(costs, kind, counts)
    return counts


@settings(deadline=None, max_examples=80)
@given(problems())
def test_the_least_loss_within_a_cost(problem: tuple[CostModel, dict[str, np.ndarray], str, int]) -> None:
    """The optimum, where all architectures can be looked at."""
    costs, losses, kind, limit = problem
    counts = allocate(Budget(kind, limit), losses, costs)
    assert cost_of(costs, kind, counts) <= limit
    spent, predicted = every_architecture(costs, kind, losses)
    assert loss_of(losses, counts) <= predicted[spent <= limit].min() + 1e-12


@settings(deadline=None, max_examples=40)
@given(problems(), st.floats(0, 1))
def test_fewest_parameters_within_a_loss(
    problem: tuple[CostModel, dict[str, np.ndarray], str, int], share: float
) -> None:
    costs, losses, _, _ = problem
    bound = share * loss_of(losses, dict.fromkeys(losses, 1))
    counts = allocate(Budget("max-loss", bound), losses, costs)
    assert loss_of(losses, counts) <= bound * (1 + 1e-12)
    spent, predicted = every_architecture(costs, "params", losses)
    assert cost_of(costs, "params", counts) <= spent[predicted <= bound * (1 - 1e-12)].min(initial=spent.max())


def test_the_search_of_large_networks_finds_the_optimum_of_most_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is never worse than steepest descent: the same problems every time."""
    monkeypatch.setattr(exhaustive, "WALKS", 0)
    random = np.random.default_rng(0)
    excesses: dict[str, list[float]] = {"cost": [], "loss": []}
    for _ in range(100):
        costs = MODELS[random.choice(sorted(MODELS))]
        kind = random.choice(["params", "macs", "bytes"])
        losses = losses_of(costs, random, random.choice([0.3, 1.0, 3.0]))
        spent, predicted = every_architecture(costs, kind, losses)
        limit = whole_units(spent.min() + random.uniform() * (spent.max() - spent.min()))
        counts = allocate(Budget(kind, limit), losses, costs)
        assert cost_of(costs, kind, counts) <= limit
        assert loss_of(losses, counts) <= loss_of(losses, steepest_descent(losses, costs, kind, limit)) * (
            1 + 1e-12
        )
        least = predicted[spent <= limit].min()
        excesses["cost"].append((loss_of(losses, counts) - least) / (least + 1e-12))
        bound = random.uniform() * predicted.max()
        counts = allocate(Budget("max-loss", bound), losses, costs)
        assert loss_of(losses, counts) <= bound * (1 + 1e-12)
        spent, _ = every_architecture(costs, "params", losses)
        least = spent[predicted <= bound].min()
        excesses["loss"].append(cost_of(costs, "params", counts) / least - 1)
    for bounded, excess in excesses.items():
        assert np.mean(np.array(excess) < 1e-9) >= 0.97, bounded
        assert max(excess) < 0.3, bounded


@settings(deadline=None, max_examples=40)
@given(problems(), st.data())
def test_costs_follow_every_move(
    problem: tuple[CostModel, dict[str, np.ndarray], str, int], data: st.DataObject
) -> None:
    costs, losses, kind, _ = problem
    table = CostTable(costs, kind, [Choices.of(name, loss, costs) for name, loss in losses.items()])
    found = Architecture(table, [len(one.counts) - 1 for one in table.choices])
    for _ in range(5):
        group = data.draw(st.integers(0, len(table.choices) - 1))
        place = data.draw(st.integers(0, len(table.choices[group].counts) - 1))
        found.cost_changes(group)
        found.move(group, place)
        assert found.cost == pytest.approx(cost_of(costs, kind, found.counts), abs=1e-6)
        assert found.loss == pytest.approx(loss_of(losses, found.counts))
        for other in range(len(table.choices)):
            name = table.choices[other].group
            for count, change in zip(table.choices[other].counts, found.cost_changes(other), strict=True):
                expected = cost_of(costs, kind, {**found.counts, name: int(count)})
                assert found.cost + change == pytest.approx(expected, abs=1e-6)


def test_positions_of_unequal_cost_are_counted_as_they_are() -> None:
    """Two classes in one group: the supports decide what a count costs."""
    costs = CostModel(
        groups=("a",), sizes=(4,), classes=((0, 0, 1, 1),), tensors=("w",), untouched=np.array([[0.0]]),
        entries=np.array([[[1.0, 5.0]]]), parameters_per_element=np.ones(1), bytes_per_element=np.ones(1),
        macs_per_element=np.ones(1), constant_macs=0,
    )  # fmt: skip
    losses = {"a": np.array([1.0, 0.4, 0.3, 0.2, 0.0])}
    supports = {"a": [np.arange(4)[-count:] if count else np.arange(0) for count in range(5)]}  # dear ones first
    assert allocate(Budget("params", 6), losses, costs)["a"] == 2
    assert allocate(Budget("params", 6), losses, costs, supports=supports)["a"] == 1


def test_allowed_counts_alone_are_chosen() -> None:
    costs = MODELS["SmallNet"]
    losses = {name: np.linspace(1, 0, size + 1) for name, size in zip(costs.groups, costs.sizes, strict=True)}
    allowed = {"conv1": np.array([4, 6]), "conv2": np.array([4, 8]), "fc1": np.array([4, 8, 12])}
    for kind, limit in (("params", 0.5), ("macs", 0.6), ("max-error", 0.5), ("max-loss", 1.2)):
        counts = allocate(Budget(kind, limit), losses, costs, allowed=allowed)
        assert all(counts[name] in allowed[name] for name in losses), (kind, counts)
    with pytest.raises(BudgetError, match="No architecture"):
        allocate(Budget("params", 0.05), losses, costs, allowed=allowed)


def test_a_loss_that_nothing_meets() -> None:
    costs = MODELS["SmallNet"]
    losses = {name: np.linspace(1, 0, size + 1) for name, size in zip(costs.groups, costs.sizes, strict=True)}
    with pytest.raises(BudgetError, match=r"bound on the predicted loss") as raised:
        allocate(Budget("max-loss", 0.1), losses, costs, {"conv1": 3})
    assert "0.5" in str(raised.value.got)


def test_a_hundred_wide_groups_take_seconds() -> None:
    groups, size = 100, 512
    random = np.random.default_rng(0)
    untouched, entries = np.zeros((groups + 1, 2)), np.zeros((groups + 1, 2, groups))
    untouched[0, 1], untouched[-1, 0] = 27, 10
    for group in range(groups):  # a chain: tensor g is cut by groups g (outputs) and g - 1 (inputs)
        entries[group, 0, group] = 1
        entries[group + 1, 1, group] = 9
    costs = CostModel(
        tuple(map(str, range(groups))), (size,) * groups, tuple((group,) * size for group in range(groups)),
        tuple(map(str, range(groups + 1))), untouched, entries, *(np.ones(groups + 1),) * 3, constant_macs=0,
    )  # fmt: skip
    share = np.arange(size + 1) / size
    losses = {name: 10 ** random.uniform(-2, 1) * (1 - share) ** random.uniform(1, 5) for name in costs.groups}
    begun = process_time()
    counts = allocate(Budget("params", 0.2), losses, costs)
    assert process_time() - begun < 10  # 1.5 s on a quiet machine
    spent = cost_of(costs, "params", counts) / cost_of(costs, "params", {})
    assert 0.1999 < spent <= 0.2
