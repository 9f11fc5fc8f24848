"""Re-estimated weights against numpy's least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.patches import patches, responses
from streamsparse.network import find_groups
from streamsparse.solve import kept_inputs, refit_layer
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
    found = refit_layer(geometry, sums, kept, (1e-13,))
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
    found = refit_layer(geometry, sums, kept, (1e-13,))
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
    single = {ridge: refit_layer(geometry, sums, every, (ridge,)).error.held_out_error for ridge in ridges}
    found = refit_layer(geometry, sums, every, ridges).error
    assert found.held_out_error == min(single.values())
    assert found.ridge == min(single, key=lambda ridge: single[ridge])
    assert found.ridge > 1e-8


def test_a_convolution_group_that_loses_all_its_inputs_predicts_its_mean() -> None:
    layer, inputs = layer_and_inputs("grouped", bias=True)
    geometry, outputs, sums = statistics(layer, inputs)
    found = refit_layer(geometry, sums, np.array([3, 4, 5]), (1e-8,))
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
