"""Peaks of real processes stay under the projection and the limit, and what is summed in blocks is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.memory import Result, gram_larger_than_memory


def assert_within(result: Result) -> None:
    assert result.blocks > 1
    assert result.error <= 1e-6  # of float32 products, against float64 patches
    assert result.peak_rss_bytes <= result.projected_bytes
    assert result.projected_bytes <= result.limit_bytes


@pytest.mark.slow
def test_a_layer_is_cut_into_blocks_under_a_tight_limit(tmp_path: Path) -> None:
    [result] = gram_larger_than_memory(tmp_path, quick=True)
    assert_within(result)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2048_channels_under_one_gibibyte(tmp_path: Path) -> None:
    """A Gram of 18,432² numbers takes 2.7 GB in each of two folds."""
    [result] = gram_larger_than_memory(tmp_path, quick=False)
    assert result.limit_bytes == 2**30
    assert_within(result)
