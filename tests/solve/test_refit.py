"""Re-estimated weights against numpy's least squares on the rows themselves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.patches import patches, responses
from streamsparse.network import find_groups
from streamsparse.solve import kept_inputs, refit_layer
from streamsparse.solve.refit import RIDGES, WIDE_RIDGES, RidgeSearch, affordable_search
from streamsparse.types import LayerGeometry
from tests.small import ConcatNet, SmallNet, build, geometry_of, reference_folds

FOLDS = 4
KEPT = {"conv": [0, 2, 3], "linear": [1, 2, 5], "grouped": [0, 3, 5], "tokens": [0, 4], "conv1d": [1, 3]}


def layer_and_inputs(kind: str, bias: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "conv":
        return nn.Conv2d(4, 5, 3, padding=1, bias=bias).double(), torch.randn(30, 4, 5, 6).double() + 1
    if kind == "grouped":
        return nn.Conv2d(6, 4, 2, groups=2, bias=bias).double(), torch.randn(30, 6, 5, 5).double() + 1
    if kind == "conv1d":
        return nn.Conv1d(4, 3, 3, stride=2, bias=bias).double(), torch.randn(30, 4, 9).double() + 1
    if kind == "tokens":
        return nn.Linear(6, 4, bias=bias).double(), torch.randn(30, 3, 6).double() - 1
    return nn.Linear(6, 4, bias=bias).double(), torch.randn(60, 6).double() - 1


def statistics(layer: nn.Module, inputs: Tensor) -> tuple[LayerGeometry, Tensor, FoldSums]:
    """Of the layer's outputs plus noise, so that the fit is not the layer itself."""
    geometry = geometry_of(layer, inputs)
    with torch.no_grad():
        outputs = layer(inputs)
        outputs = outputs + 0.3 * torch.randn_like(outputs) + 0.2 * outputs.square()
    return geometry, outputs, reference_folds(geometry, inputs, outputs, FOLDS)


def least_squares(x: np.ndarray, y: np.ndarray, bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (outputs, columns) and bias by numpy, on the rows."""
    columns = np.hstack([x, np.ones((len(x), 1))]) if bias else x
    solution = np.linalg.lstsq(columns, y, rcond=None)[0]
    return (solution[:-1].T, solution[-1]) if bias else (solution.T, np.zeros(y.shape[1]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KEPT)
def test_weights_and_bias_are_those_of_least_squares(kind: str, bias: bool) -> None:
    layer, inputs = layer_and_inputs(kind, bias)
    geometry, outputs, sums = statistics(layer, inputs)
    kept = np.array(KEPT[kind])
    found = refit_layer(geometry, sums, kept, RidgeSearch((1e-13,)))
    assert found.weight.shape == tuple(layer.get_parameter("weight").shape)
    assert (found.bias is not None) == bias
    width, outputs_per_group = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    x, y = patches(inputs, geometry).numpy(), responses(outputs, geometry).numpy()
    for group in range(geometry.groups):
        own = [channel - group * width for channel in kept if group * width <= channel < (group + 1) * width]
        columns = np.concatenate([np.arange(c * geometry.taps, (c + 1) * geometry.taps) for c in own])
        weight, shift = least_squares(x[group][:, columns], y[group], bias)
        rows = slice(group * outputs_per_group, (group + 1) * outputs_per_group)
        whole = np.zeros((outputs_per_group, geometry.columns))
        whole[:, columns] = weight
        np.testing.assert_allclose(found.weight[rows].reshape(outputs_per_group, -1), whole, atol=1e-8)
        if found.bias is not None:
            np.testing.assert_allclose(found.bias[rows], shift, atol=1e-8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "linear", "conv1d"])
def test_errors_are_those_on_the_rows(kind: str, bias: bool) -> None:
    """Held-out: fitted on three folds, measured on the fourth, relative to its power about the training mean."""
    layer, inputs = layer_and_inputs(kind, bias)
    geometry, outputs, sums = statistics(layer, inputs)
    kept = np.array(KEPT[kind])
    found = refit_layer(geometry, sums, kept, RidgeSearch((1e-13,)))
    columns = np.concatenate([np.arange(c * geometry.taps, (c + 1) * geometry.taps) for c in kept])

    def rows(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = patches(inputs[chosen], geometry)[0].numpy()[:, columns]
        return x, responses(outputs[chosen], geometry)[0].numpy()

    def error(fitted_on: np.ndarray, measured_on: np.ndarray) -> float:
        (x, y), (test_x, test_y) = rows(fitted_on), rows(measured_on)
        weight, shift = least_squares(x, y, bias)
        residual = np.square(test_y - test_x @ weight.T - shift).sum()
        return float(residual / np.square(test_y - (y.mean(0) if bias else 0)).sum())

    numbers = np.arange(len(inputs))
    expected = [error(numbers[numbers % FOLDS != fold], numbers[numbers % FOLDS == fold]) for fold in range(FOLDS)]
    assert found.error.held_out_error == pytest.approx(float(np.mean(expected)), rel=1e-6)
    assert found.error.training_error == pytest.approx(error(numbers, numbers), rel=1e-6)


def test_the_ridge_of_least_held_out_error_is_taken() -> None:
    """Hardly more rows than columns: a ridge helps."""
    torch.manual_seed(1)
    layer, inputs = nn.Linear(20, 3).double(), torch.randn(28, 20).double()
    geometry, _, sums = statistics(layer, inputs)
    ridges = (1e-8, 1e-4, 1e-2, 1e-1, 1.0)
    every = np.arange(20)
    single = {
        ridge: refit_layer(geometry, sums, every, RidgeSearch((ridge,))).error.held_out_error for ridge in ridges
    }
    found = refit_layer(geometry, sums, every, RidgeSearch(ridges)).error
    assert found.held_out_error == min(single.values())
    assert found.ridge == min(single, key=lambda ridge: single[ridge])
    assert found.ridge > 1e-8


@pytest.mark.parametrize("kind", KEPT)
def test_an_endless_ridge_leaves_the_originals_weights(kind: str) -> None:
    """On the inputs that are kept; the bias makes up for the means of the others."""
    layer, inputs = layer_and_inputs(kind, bias=True)
    geometry, _, sums = statistics(layer, inputs)
    kept, weight = np.array(KEPT[kind]), layer.get_parameter("weight").detach().numpy()
    found = refit_layer(geometry, sums, kept, RidgeSearch((1e12,)), weight)
    flat, width = weight.reshape(len(weight), -1, geometry.taps), geometry.in_channels // geometry.groups
    stays = np.zeros((geometry.groups, 1, width, 1))
    stays[kept // width, 0, kept % width] = 1
    expected = (flat.reshape(geometry.groups, -1, width, geometry.taps) * stays).reshape(weight.shape)
    np.testing.assert_allclose(found.weight, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_from_few_rows_the_originals_weights_are_the_better_start(kind: str) -> None:
    """Fewer rows than columns, or hardly more: judged on others."""
    layer, inputs = layer_and_inputs(kind, bias=True)
    geometry = geometry_of(layer, inputs[:1])
    few = 8 if kind == "linear" else 4
    sums = reference_folds(geometry, inputs[:few], layer(inputs[:few]).detach(), 4)
    kept, weight = np.array(KEPT[kind]), layer.get_parameter("weight").detach().numpy()
    wanted = layer(inputs[few:]).detach()
    errors = []
    for original in (None, weight):
        found = refit_layer(geometry, sums, kept, RidgeSearch(), original)
        changed = copy.deepcopy(layer)
        with torch.no_grad():
            changed.get_parameter("weight").copy_(torch.tensor(found.weight))
            changed.get_parameter("bias").copy_(torch.tensor(found.bias))
            errors.append(float((changed(inputs[few:]) - wanted).square().mean()))
    assert errors[1] < 0.9 * errors[0], errors


@pytest.mark.parametrize(("seed", "rows"), [(0, 12), (130, 12), (141, 20), (2, 24), (3, 200)])
def test_the_best_of_all_ridges_is_found_from_above(seed: int, rows: int) -> None:
    """From below the first three end at another, up to 1.5 times as bad: there held-out errors rise and fall."""
    torch.manual_seed(seed)
    layer = nn.Linear(24, 5).double()
    inputs = torch.randn(rows, 24) @ torch.diag(torch.logspace(0, -4, 24)) @ torch.randn(24, 24)
    inputs = (torch.relu(inputs) if seed % 2 else inputs).double()
    geometry = geometry_of(layer, inputs[:1])
    sums = reference_folds(geometry, inputs, layer(inputs).detach(), 4)
    kept, weight = np.arange(18), layer.weight.detach().numpy()
    found = refit_layer(geometry, sums, kept, RidgeSearch(), weight).error
    alone = [refit_layer(geometry, sums, kept, RidgeSearch((ridge,)), weight).error for ridge in RIDGES]
    assert found.held_out_error == pytest.approx(min(one.held_out_error for one in alone), rel=1e-6)


def test_where_many_factorizations_are_too_dear_one_fold_judges() -> None:
    torch.manual_seed(1)
    layer, inputs = nn.Linear(20, 3).double(), torch.randn(28, 20).double()
    geometry, _, sums = statistics(layer, inputs)
    found = refit_layer(geometry, sums, np.arange(20), RidgeSearch(folds=1)).error
    alone = refit_layer(geometry, sums, np.arange(20), RidgeSearch((found.ridge,))).error
    assert found == alone
    narrow = geometry_of(nn.Conv2d(8, 8, 3), torch.zeros(1, 8, 8, 8))
    wide = geometry_of(nn.Conv2d(512, 512, 3), torch.zeros(1, 512, 3, 3))
    assert affordable_search(narrow, 8, 5) == RidgeSearch()
    assert affordable_search(wide, 512, 5) == RidgeSearch(WIDE_RIDGES, 1)


def test_a_convolution_group_that_loses_all_its_inputs_predicts_its_mean() -> None:
    layer, inputs = layer_and_inputs("grouped", bias=True)
    geometry, outputs, sums = statistics(layer, inputs)
    found = refit_layer(geometry, sums, np.array([3, 4, 5]), RidgeSearch((1e-8,)))
    assert not found.weight[:2].any()
    assert found.bias is not None
    np.testing.assert_allclose(found.bias[:2], outputs[:, :2].mean((0, 2, 3)).numpy(), rtol=1e-9)


def test_kept_inputs_follow_the_groups() -> None:
    graph = find_groups(build(SmallNet), torch.zeros(1, 1, 8, 8))
    kept = kept_inputs(graph, {"conv1": (0, 5), "conv2": (1,)})
    assert kept["conv2"].tolist() == [0, 5]
    assert kept["fc1"].tolist() == list(range(9, 18))
    assert kept["fc2"].tolist() == list(range(12))


def test_kept_inputs_of_a_layer_that_reads_two_groups() -> None:
    graph = find_groups(build(ConcatNet), torch.zeros(1, 1, 8, 8))
    assert kept_inputs(graph, {"left": (1,), "right": (0, 3)})["mix"].tolist() == [1, 3, 6]
