"""Working supports and their refits, against what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.patches import patches, responses
from streamsparse.kernels.regression import Regression
from streamsparse.solve.working import WORKING_RIDGE, refit_errors, removal_costs, working_support
from streamsparse.types import ChannelGroup, Consumer
from tests.small import geometry_of, reference_folds
from tests.strategies import Sample, random_sample, refit_objective, samples


@given(samples(max_positions=6))
def test_removal_costs_are_the_rise_of_the_refit_without_one_position(sample: Sample) -> None:
    regression = sample.regression
    everything = np.arange(regression.positions)
    whole = refit_objective(regression, everything, WORKING_RIDGE)
    expected = [
        refit_objective(regression, np.delete(everything, position), WORKING_RIDGE) - whole
        for position in everything
    ]
    assert removal_costs((regression,)) == pytest.approx(np.array(expected), rel=1e-6, abs=1e-9)


def test_several_consumers_count_by_their_relative_errors() -> None:
    """A consumer in other units does not drown the other."""
    one, other = (random_sample(seed, positions=5).regression for seed in (0, 1))
    scaled = Regression(other.gram, 100 * other.cross, 1e4 * other.power, other.taps)
    assert removal_costs((one, scaled)) == pytest.approx(removal_costs((one, other)), rel=1e-9)


def _layer(groups: int, images: int = 24) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, padding=1, groups=groups).double()
    inputs = torch.randn(images, 6, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        outputs = layer(inputs) + torch.randn(images, 4, 5, 5, dtype=torch.float64)
    return layer, inputs, outputs


def _sums(layer: nn.Conv2d, inputs: torch.Tensor, outputs: torch.Tensor, folds: int = 3) -> FoldSums:
    return reference_folds(geometry_of(layer, inputs), inputs, outputs, folds)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kept", [(0, 2, 5), (0, 1, 2, 3, 4, 5)])
def test_refit_errors_are_those_of_fits_on_the_patches(groups: int, kept: tuple[int, ...]) -> None:
    """Least squares on all folds but one, residuals on both sides, from the patches themselves."""
    layer, inputs, outputs = _layer(groups)
    geometry, folds = geometry_of(layer, inputs), 3
    found = refit_errors(geometry, _sums(layer, inputs, outputs, folds), np.array(kept))
    errors = []
    for fold in range(folds):
        inside = torch.arange(len(inputs)) % folds == fold
        sides = [
            (patches(inputs[choice], geometry).numpy(), responses(outputs[choice], geometry).numpy())
            for choice in (~inside, inside)
        ]
        residuals, powers = np.zeros(2), np.zeros(2)
        for group in range(groups):
            width = 6 // groups
            columns = [(c - group * width) * 9 + tap for c in kept if c // width == group for tap in range(9)]
            (x, y), (x_out, y_out) = ((x[group][:, columns], y[group]) for x, y in sides)
            mean_x, mean_y = x.mean(0), y.mean(0)
            weights = np.linalg.lstsq(x - mean_x, y - mean_y, rcond=None)[0]
            for side, (rows, targets) in enumerate(((x, y), (x_out, y_out))):
                residuals[side] += np.square(targets - mean_y - (rows - mean_x) @ weights).mean(0).sum()
                powers[side] += np.square(targets - mean_y).mean(0).sum()
        errors.append(residuals / powers)
    training, held_out = np.mean(errors, axis=0)
    assert found.held_out_error <= held_out * (1 + 1e-3)  # the best of the ridges
    if found.ridge == 1e-6:
        assert found.held_out_error == pytest.approx(held_out, rel=1e-3)
        assert found.training_error == pytest.approx(training, rel=1e-3)
        assert found.error_bar == pytest.approx(np.std(errors, axis=0, ddof=1)[1] / folds**0.5, rel=0.05)
    assert found.training_error < found.held_out_error


@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_supports_are_sorted_and_of_the_asked_size(seed: int, fraction: float) -> None:
    torch.manual_seed(seed)
    layer, inputs, outputs = _layer(1, images=9)
    group = ChannelGroup("g", 6, (), (Consumer("layer", tuple((c,) for c in range(6))),))
    geometry = geometry_of(layer, inputs)
    support = working_support(group, {"layer": geometry}, {"layer": _sums(layer, inputs, outputs)}, fraction)
    assert len(support) == max(1, round(6 * fraction))
    assert (np.diff(support) > 0).all()


def test_channels_that_do_nothing_go_first() -> None:
    layer, inputs, outputs = _layer(1)
    with torch.no_grad():
        layer.weight[:, [1, 4]] = 0
        outputs = layer(inputs)
    group = ChannelGroup("g", 6, (), (Consumer("layer", tuple((c,) for c in range(6))),))
    geometry = geometry_of(layer, inputs)
    support = working_support(group, {"layer": geometry}, {"layer": _sums(layer, inputs, outputs)}, 4 / 6)
    assert support.tolist() == [0, 2, 3, 5]
