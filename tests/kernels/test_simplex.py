"""Quadratic programs on the simplex against brute force and optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.kernels.simplex import Quadratic, minimise_on_simplex, project_to_simplex


def random_quadratic(seed: int, size: int, rank: int) -> Quadratic:
    random = np.random.default_rng(seed)
    factor = random.standard_normal((rank, size)) * 10.0 ** random.uniform(-2, 2, size)
    return Quadratic(factor.T @ factor, factor.T @ random.standard_normal(rank))


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_the_optimality_gap_is_closed(seed: int, size: int, rank: int) -> None:
    quadratic = random_quadratic(seed, size, rank)
    start = np.random.default_rng(seed).dirichlet(np.ones(size))
    w = minimise_on_simplex(quadratic, start)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1, abs=1e-12)
    assert quadratic.value(w) <= quadratic.value(start)
    gradient = quadratic.gradient(w)
    assert gradient @ w - gradient.min() <= 1e-8 * np.abs(quadratic.matrix).max()


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_three_entries_against_a_grid(seed: int) -> None:
    quadratic = random_quadratic(seed, 3, 3)
    steps = np.linspace(0, 1, 201)
    first, second = (axis.ravel() for axis in np.meshgrid(steps, steps))
    inside = first + second <= 1 + 1e-12
    grid = np.column_stack([first, second, np.maximum(1 - first - second, 0)])[inside]
    values = ((grid @ quadratic.matrix) * grid).sum(axis=1) - 2 * grid @ quadratic.vector
    optimum = quadratic.value(minimise_on_simplex(quadratic, np.full(3, 1 / 3)))
    largest = np.linalg.eigvalsh(quadratic.matrix)[-1]
    assert optimum <= values.min() + 1e-12 * largest
    nearest = grid[np.argmin(values)]
    assert values.min() - optimum <= np.abs(quadratic.gradient(nearest)).max() * 0.01 + largest * 1e-4


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_projection_is_the_nearest_probability_vector(entries: list[float]) -> None:
    v = np.array(entries)
    projected = project_to_simplex(v)
    assert projected.min() >= 0
    assert projected.sum() == pytest.approx(1)
    towards_corners = (v - projected) @ (np.eye(len(v)) - projected).T
    assert towards_corners.max() <= 1e-9 * (1 + np.abs(v).max())


def test_trivial_programs() -> None:
    np.testing.assert_array_equal(minimise_on_simplex(Quadratic(np.ones((1, 1)), np.ones(1)), np.ones(1)), [1])
    flat = Quadratic(np.zeros((2, 2)), np.zeros(2))
    np.testing.assert_array_equal(minimise_on_simplex(flat, np.array([0.3, 0.7])), [0.3, 0.7])
    linear = Quadratic(np.zeros((2, 2)), np.array([1.0, 2.0]))
    np.testing.assert_allclose(minimise_on_simplex(linear, np.array([0.5, 0.5])), [0, 1], atol=1e-9)
