"""Folds by image number: disjoint, complete, and the same for every chunking."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamsparse.kernels.folds import empty_folds, finish_folds, merge_folds, split_moments, total, update_folds
from streamsparse.kernels.statistics import empty, update
from tests.small import geometry_of, largest_difference, reference_folds, sums_arrays

TOLERANCE = 1e-12


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 5), st.integers(1, 30), st.lists(st.integers(0, 30), max_size=4), st.integers(0, 2**31))
def test_any_chunking_puts_every_image_into_its_fold(folds: int, images: int, cuts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    inputs, outputs = torch.randn(images, 3, dtype=torch.float64), torch.randn(images, 2, dtype=torch.float64)
    geometry = geometry_of(nn.Linear(3, 2).double(), inputs)
    edges = [0, *sorted(min(cut, images) for cut in cuts), images]
    parts = []
    for first, last in itertools.pairwise(edges):
        sums = empty_folds(geometry, folds)
        update_folds(sums, inputs[first:last], outputs[first:last], geometry, first, "float64")
        parts.append(finish_folds(sums, geometry))
    found = parts[0]
    for part in parts[1:]:
        found = merge_folds(found, part)
    expected = reference_folds(geometry, inputs, outputs, folds)
    assert largest_difference(sums_arrays(found), sums_arrays(expected)) <= TOLERANCE
    whole = empty(geometry)
    update(whole, inputs, outputs, geometry)
    assert largest_difference(sums_arrays((total(found),)), sums_arrays((whole,))) <= TOLERANCE
    assert largest_difference(sums_arrays(found), sums_arrays(expected)) <= TOLERANCE  # adding up changes no fold


def test_held_out_moments_are_about_the_training_means() -> None:
    torch.manual_seed(3)
    inputs, outputs = torch.randn(20, 3, dtype=torch.float64) + 2, torch.randn(20, 2, dtype=torch.float64) - 1
    geometry = geometry_of(nn.Linear(3, 2).double(), inputs)
    sums = empty_folds(geometry, 4)
    update_folds(sums, inputs, outputs, geometry, 0, "float64")
    training, held_out = split_moments(finish_folds(sums, geometry), 1)
    chosen = np.arange(20) % 4 == 1
    x, y = inputs.numpy(), outputs.numpy()
    mean_x, mean_y = x[~chosen].mean(0), y[~chosen].mean(0)
    np.testing.assert_allclose(training.mean_x[0], mean_x, rtol=1e-12)
    np.testing.assert_allclose(held_out.mean_x[0], mean_x, rtol=1e-12)
    a, b = x[chosen] - mean_x, y[chosen] - mean_y
    np.testing.assert_allclose(held_out.gram[0], a.T @ a / 5, rtol=1e-11)
    np.testing.assert_allclose(held_out.cross[0], a.T @ b / 5, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(held_out.power[0], np.square(b).sum() / 5, rtol=1e-11)


def test_moments_without_a_bias_are_about_the_origin() -> None:
    torch.manual_seed(4)
    inputs, outputs = torch.randn(20, 3, dtype=torch.float64) + 2, torch.randn(20, 2, dtype=torch.float64) - 1
    geometry = geometry_of(nn.Linear(3, 2, bias=False).double(), inputs)
    sums = empty_folds(geometry, 4)
    update_folds(sums, inputs, outputs, geometry, 0, "float64")
    chosen = np.arange(20) % 4 == 1
    for found, rows in zip(
        split_moments(finish_folds(sums, geometry), 1, centred=False), (~chosen, chosen), strict=True
    ):
        x, y = inputs.numpy()[rows], outputs.numpy()[rows]
        np.testing.assert_array_equal(found.mean_x, 0)
        np.testing.assert_allclose(found.gram[0], x.T @ x / len(x), rtol=1e-11)
        np.testing.assert_allclose(found.cross[0], x.T @ y / len(x), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(found.power[0], np.square(y).sum() / len(y), rtol=1e-11)
