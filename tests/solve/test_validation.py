"""Held-out errors against least squares on the raw rows: nothing that is judged takes part in the judgement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.statistics import Sums
from streamsparse.solve import fronts, validation
from streamsparse.solve.fronts import SolveSettings, interpolated, solve_group
from streamsparse.solve.originals import Originals
from streamsparse.solve.validation import cross_validated
from streamsparse.types import ChannelGroup, Consumer
from tests.small import geometry_of

OWN, CONTEXT, OUTPUTS = 6, 12, 3


def sums_of(x: np.ndarray, y: np.ndarray) -> Sums:
    """Raw sums of rows."""
    rows, responses = torch.from_numpy(x), torch.from_numpy(y)
    return Sums(
        (rows.T @ rows)[None], (rows.T @ responses)[None], rows.sum(0)[None], responses.sum(0)[None],
        responses.square().sum()[None], torch.tensor([float(len(x))], dtype=torch.float64),
    )  # fmt: skip


def held_out_ratio(x: np.ndarray, y: np.ndarray, judged: np.ndarray, support: np.ndarray) -> float:
    """Error of support and context together over that of the context alone, both fitted to the other rows."""
    context = np.arange(OWN, OWN + CONTEXT)
    errors = []
    for columns in (np.concatenate([support, context]), context):
        means = x[~judged].mean(0), y[~judged].mean(0)
        known, wanted = x[~judged][:, columns] - means[0][columns], y[~judged] - means[1]
        weights = np.linalg.lstsq(known, wanted, rcond=None)[0]
        left = y[judged] - means[1] - (x[judged][:, columns] - means[0][columns]) @ weights
        errors.append(np.square(left).sum())
    return float(errors[0] / errors[1])


@pytest.mark.parametrize("rows", [10, 16, 200], ids=["fewer than context", "hardly more", "many"])
def test_channels_of_other_groups_are_fitted_to_the_other_folds(rows: int) -> None:
    rng = np.random.default_rng(rows)
    mixed = rng.normal(size=(4 * rows, OWN + CONTEXT)) @ rng.normal(size=(OWN + CONTEXT, OWN + CONTEXT))
    x = mixed + rng.normal(size=OWN + CONTEXT)
    y = x @ rng.normal(size=(OWN + CONTEXT, OUTPUTS)) + rng.normal(size=(4 * rows, OUTPUTS))
    fold = np.repeat(np.arange(4), rows)
    group = ChannelGroup("own", OWN, (), (Consumer("layer", tuple((c,) for c in range(OWN))),))
    geometry = geometry_of(nn.Linear(OWN + CONTEXT, OUTPUTS), torch.zeros(1, OWN + CONTEXT))
    statistics = {"layer": tuple(sums_of(x[fold == one], y[fold == one]) for one in range(4))}
    supports = [np.array(kept) for kept in ([0], [1, 4], [0, 2, 3, 5], list(range(OWN)))]
    found = cross_validated(group, {"layer": geometry}, statistics, supports, DEFAULT_RIDGE)
    expected = [np.mean([held_out_ratio(x, y, fold == one, kept) for one in range(4)]) for kept in supports]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("ridge", [1e-6, 1e-1])
def test_refits_are_held_to_the_originals_weights(ridge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against rows, with inputs in an order of their own, fewer rows than columns."""
    monkeypatch.setattr(validation, "RIDGES", ())
    rng, fold = np.random.default_rng(3), np.repeat(np.arange(4), 2)
    layer = nn.Linear(2 * OWN, OUTPUTS)
    weights = layer.weight.detach().double().numpy()
    x = rng.normal(size=(8, 2 * OWN))
    y = x @ weights.T
    inputs = tuple((c + OWN, c) for c in reversed(range(OWN)))  # two features for every position
    group = ChannelGroup("own", OWN, (), (Consumer("layer", inputs),))
    geometry = replace(geometry_of(layer, torch.zeros(1, 2 * OWN)), layer="layer")
    statistics = {"layer": tuple(sums_of(x[fold == one], y[fold == one]) for one in range(4))}
    originals = Originals({"layer.weight": layer.weight.detach()})

    def held_out(support: list[int], judged: np.ndarray) -> float:
        columns = np.array([c for position in support for c in inputs[position]])
        means = x[~judged].mean(0), y[~judged].mean(0)
        known, wanted = x[~judged] - means[0], y[~judged] - means[1]
        scale = np.square(known).mean(0)[np.array(inputs)].mean(1)[support].repeat(2)
        holds = np.diag(np.sqrt(len(known) * ridge * scale))
        both = np.vstack([known[:, columns], holds]), np.vstack([wanted, holds @ weights[:, columns].T])
        fitted = np.linalg.lstsq(*both, rcond=None)[0]
        left = y[judged] - means[1] - (x[judged] - means[0])[:, columns] @ fitted
        return float(np.square(left).sum() / np.square(y[judged] - means[1]).sum())

    for supports in ([[0], [1, 4]], [[0, 2], [1, 2, 3, 5], list(range(OWN))]):  # few columns, and all
        kept = [np.array(support) for support in supports]
        found = validation.cross_validated(group, {"layer": geometry}, statistics, kept, ridge, originals)
        expected = [np.mean([held_out(support, fold == one) for one in range(4)]) for support in supports]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert found[-1] < 1e-12  # all positions: the original itself


@pytest.mark.parametrize("ridge", [1e-2, 1.0])
@pytest.mark.parametrize("rows", [3, 7, 40], ids=["fewer than context", "hardly more", "many"])
def test_inputs_of_other_groups_are_held_to_the_originals_weights(
    rows: int, ridge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one refit of both by rows, as the chosen supports will be refitted."""
    monkeypatch.setattr(validation, "RIDGES", ())
    rng, fold = np.random.default_rng(rows), np.repeat(np.arange(4), rows)
    layer = nn.Linear(OWN + CONTEXT, OUTPUTS)
    weights, others = layer.weight.detach().double().numpy(), list(range(OWN, OWN + CONTEXT))
    x = rng.normal(size=(4 * rows, OWN + CONTEXT)) @ rng.normal(size=(OWN + CONTEXT, OWN + CONTEXT))
    x[fold != 0, OWN] = 0.0  # an input that is dead but in the first fold
    y = x @ weights.T
    group = ChannelGroup("own", OWN, (), (Consumer("layer", tuple((c,) for c in range(OWN))),))
    geometry = replace(geometry_of(layer, torch.zeros(1, OWN + CONTEXT)), layer="layer")
    statistics = {"layer": tuple(sums_of(x[fold == one], y[fold == one]) for one in range(4))}
    originals = Originals({"layer.weight": layer.weight.detach()})

    def left(support: list[int], judged: np.ndarray) -> float:
        columns = [*support, *others]
        means = x[~judged].mean(0), y[~judged].mean(0)
        known, wanted = x[~judged] - means[0], y[~judged] - means[1]
        gram, own = known.T @ known / len(known), range(OWN)
        fixed = np.diag(ridge * np.where(np.diag(gram) > 0, np.diag(gram), 1.0))[np.ix_(others, others)]
        explained = np.linalg.solve(gram[np.ix_(others, others)] + fixed, gram[np.ix_(others, own)])
        scale = np.diag(gram[np.ix_(own, own)] - gram[np.ix_(own, others)] @ explained)[support]
        holds = np.diag(np.sqrt(len(known) * np.concatenate([ridge * scale, np.diag(fixed)])))
        both = np.vstack([known[:, columns], holds]), np.vstack([wanted, holds @ weights[:, columns].T])
        fitted = np.linalg.lstsq(*both, rcond=None)[0]
        missed = y[judged] - means[1] - (x[judged] - means[0])[:, columns] @ fitted
        return float(np.square(missed).sum())

    kept = [[0], [1, 4], [0, 2, 3, 5], list(range(OWN))]
    supports = [np.array(support) for support in kept]
    found = cross_validated(group, {"layer": geometry}, statistics, supports, ridge, originals)
    folds = [fold == one for one in range(4)]
    expected = [np.mean([left(support, one) / left([], one) for one in folds]) for support in kept]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)
    assert found[-1] < 1e-9  # all positions: the original itself


def test_errors_between_counts_stay_between_their_neighbours() -> None:
    training = np.geomspace(1.0, 1e-9, 101)
    counts = np.array([0, 50, 100])
    held_out = np.array([1.0, 2e-3, 1e-4])  # the ratio jumps from 60 to 1e5
    found = interpolated(training, counts, held_out)
    np.testing.assert_array_equal(found[counts], held_out)
    assert (np.diff(found) < 0).all()
    assert found[99] == pytest.approx(1e-4 * (2e-3 / 1e-4) ** (1 / 50), rel=0.02)


@pytest.mark.parametrize("round_off", [0.0, 1e-15, 1e-9])
def test_round_off_where_nothing_is_lost_does_not_reach_other_counts(round_off: float) -> None:
    training = np.append(np.linspace(1.0, 1e-3, 100), [3e-9, 1e-12])
    counts = np.array([0, 30, 60, 90, 100, 101])
    found = interpolated(training, counts, np.append(1.1 * training[counts[:-2]], [round_off, 0.0]))
    np.testing.assert_allclose(found[:91], 1.1 * training[:91], rtol=1e-3)
    np.testing.assert_allclose(found[91:100], 1.05 * training[91:100], rtol=0.05)
    assert (found[100:] == [round_off, 0.0]).all()


@pytest.mark.parametrize("rows", [400, 16, 8], ids=["many rows", "hardly more", "fewer than columns"])
def test_some_counts_tell_the_errors_of_all(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer that is refitted towards its weights: all positions have no error, all but some have."""
    monkeypatch.setattr(validation, "_shrinkage", lambda *_: 1e-2)  # as much for all as for some
    rng, positions, fold = np.random.default_rng(5), 60, np.repeat(np.arange(4), rows)
    torch.manual_seed(0)
    layer = nn.Linear(positions, OUTPUTS)
    x = rng.normal(size=(4 * rows, positions)) @ (np.eye(positions) + 0.3 * rng.normal(size=(positions, positions)))
    y = x @ layer.weight.detach().double().numpy().T
    group = ChannelGroup("own", positions, (), (Consumer("layer", tuple((c,) for c in range(positions))),))
    geometries = {"layer": replace(geometry_of(layer, torch.zeros(1, positions)), layer="layer")}
    statistics = {"layer": tuple(sums_of(x[fold == one], y[fold == one]) for one in range(4))}
    settings, originals = SolveSettings("elimination"), Originals({"layer.weight": layer.weight.detach()})
    every = solve_group(group, geometries, statistics, settings, originals)
    assert len(every.evaluated) == positions + 1
    monkeypatch.setattr(fronts, "_CROSS_VALIDATION_FLOPS", 4.5e6)
    some = solve_group(group, geometries, statistics, settings, originals)
    assert len(some.evaluated) < positions / 2
    np.testing.assert_array_equal(some.held_out[some.evaluated], every.held_out[some.evaluated])
    ratios = some.held_out[:-1] / every.held_out[:-1]
    assert ratios.min() > 1 / 1.5
    assert ratios.max() < 1.5
