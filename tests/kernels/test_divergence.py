"""Distances between outputs, by their definitions."""

from __future__ import annotations

import pytest
import torch

from streamsparse.errors import ModelError, NonFiniteError
from streamsparse.kernels.divergence import measure_of, output_loss


def test_divergence_of_two_coins() -> None:
    fair = torch.zeros(1, 2)
    biased = torch.tensor([[0.75, 0.25]]).log()
    expected = 0.5 * torch.log(torch.tensor(0.5 / 0.75)) + 0.5 * torch.log(torch.tensor(0.5 / 0.25))
    assert output_loss([fair], [biased]) == pytest.approx(float(expected), rel=1e-6)
    assert output_loss([fair, fair], [biased, fair]) == pytest.approx(float(expected) / 2, rel=1e-6)


def test_divergence_ignores_what_softmax_ignores() -> None:
    logits = torch.randn(5, 4)
    assert output_loss([logits], [logits + 3]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(6, 1), (6,), (6, 3, 4)])
def test_other_outputs_are_compared_by_their_variance(shape: tuple[int, ...]) -> None:
    original = torch.randn(shape) * 5 + 100
    changed = original + 0.1 * torch.randn(shape)
    assert measure_of(original) == "squared difference"
    expected = (changed - original).square().sum() / (original - original.mean(0)).square().sum()
    assert output_loss([original[:4], original[4:]], [changed[:4], changed[4:]]) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_outputs_without_scale_or_number_are_refused() -> None:
    with pytest.raises(ModelError, match="no variance"):
        output_loss([torch.ones(3, 1)], [torch.zeros(3, 1)])
    with pytest.raises(NonFiniteError):
        output_loss([torch.zeros(1, 2)], [torch.tensor([[0.0, float("nan")]])])
