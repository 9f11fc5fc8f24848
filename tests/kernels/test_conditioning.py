"""Condition and rank against data of which both are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsparse.errors import StatisticsError
from streamsparse.kernels.conditioning import conditioning


def gram_of(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    gram: np.ndarray = centred.T @ centred / len(rows)
    return gram


def test_two_correlated_columns() -> None:
    found = conditioning(np.array([[4.0, 0.9 * 6], [0.9 * 6, 9.0]]), "float64")
    assert found.condition == pytest.approx(1.9 / 0.1)
    assert found.rank == 2


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(-6, 6))
def test_units_do_not_matter(seed: int, columns: int, exponent: float) -> None:
    random = np.random.default_rng(seed)
    gram = gram_of(random.standard_normal((40, columns)))
    units = 10 ** np.linspace(0, exponent, columns)
    plain, scaled = conditioning(gram, "float64"), conditioning(gram * units * units[:, None], "float64")
    assert scaled.condition == pytest.approx(plain.condition, rel=1e-6)
    assert scaled.rank == plain.rank == columns


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(0, 8), st.integers(0, 3))
def test_rank_counts_what_is_independent(seed: int, free: int, dependent: int, dead: int) -> None:
    random = np.random.default_rng(seed)
    own = random.standard_normal((200, free))
    sums = own @ random.uniform(0.5, 1.5, (free, dependent))
    rows = np.hstack([own, sums, np.full((200, dead), 3.0)])
    found = conditioning(gram_of(rows[:, random.permutation(rows.shape[1])]), "float64")
    assert found.rank == free
    assert 1 <= found.condition < 1e6


@pytest.mark.parametrize(("products", "dtype"), [("float32", np.float32), ("float64", np.float64)])
def test_fewer_patches_than_columns_leave_as_many_as_patches_less_the_mean(
    products: str, dtype: type[np.floating]
) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 300)).astype(dtype)
    gram = (rows.T @ rows).astype(np.float64) / 50
    mean = rows.astype(np.float64).mean(axis=0)
    assert conditioning(gram - np.outer(mean, mean), products).rank == 49


def test_nothing_that_varies_has_no_rank() -> None:
    found = conditioning(np.zeros((3, 3)), "float32")
    assert (found.condition, found.rank) == (1.0, 0)


def test_unknown_products_are_refused() -> None:
    with pytest.raises(StatisticsError, match="precision"):
        conditioning(np.eye(2), "float8")
