"""Hypothesis strategies: random regressions with the data they come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from streamsparse.kernels.regression import (
    Problem,
    Regression,
    columns_of,
    refit,
    relative_error,
    ridge_penalty,
)


@dataclass(frozen=True, eq=False)
class Sample:
    """Centred patches, their responses and the regression over their moments."""

    patches: np.ndarray  # (patches, positions·taps)
    responses: np.ndarray  # (patches, outputs)
    regression: Regression


def sample_of(patches: np.ndarray, responses: np.ndarray, taps: int) -> Sample:
    """Centre the data and take its moments."""
    patches = patches - patches.mean(axis=0)
    responses = responses - responses.mean(axis=0)
    count = len(patches)
    return Sample(
        patches,
        responses,
        Regression(
            gram=patches.T @ patches / count,
            cross=patches.T @ responses / count,
            power=float(np.square(responses).sum()) / count,
            taps=taps,
        ),
    )


def random_sample(
    seed: int,
    *,
    positions: int,
    taps: int = 1,
    outputs: int = 3,
    patches: int = 200,
    noise: float = 0.1,
    correlation: float = 0.5,
) -> Sample:
    """Correlated channels of unequal strength; the responses use a random half of them."""
    random = np.random.default_rng(seed)
    columns = positions * taps
    common = random.standard_normal((patches, max(1, columns // 3)))
    mixing = random.standard_normal((common.shape[1], columns))
    inputs = random.standard_normal((patches, columns)) + correlation * common @ mixing
    inputs *= np.repeat(random.uniform(0.5, 2.0, positions), taps)
    weights = random.standard_normal((columns, outputs))
    weights *= np.repeat(random.uniform(0, 1, positions) ** 3, taps)[:, None]
    responses = inputs @ weights + noise * random.standard_normal((patches, outputs))
    return sample_of(inputs, responses, taps)


@st.composite
def samples(draw: st.DrawFn, *, max_positions: int = 8, max_taps: int = 3, positions: int | None = None) -> Sample:
    """A well-posed regression with its data."""
    return random_sample(
        draw(st.integers(0, 2**32 - 1)),
        positions=positions or draw(st.integers(1, max_positions)),
        taps=draw(st.integers(1, max_taps)),
        outputs=draw(st.integers(1, 4)),
        noise=draw(st.sampled_from([0.0, 0.1, 1.0])),
        correlation=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )


@st.composite
def problems(draw: st.DrawFn, *, max_positions: int = 8, max_consumers: int = 2) -> Problem:
    """A channel group with one or more consumers of different taps, possibly with dead or duplicate channels."""
    positions = draw(st.integers(1, max_positions))
    consumers = [draw(samples(positions=positions)) for _ in range(draw(st.integers(1, max_consumers)))]
    flaw = draw(st.sampled_from(["none", "none", "dead", "duplicate", "few patches"]))
    return tuple(_flawed(sample, flaw).regression for sample in consumers)


def _flawed(sample: Sample, flaw: str) -> Sample:
    taps = sample.regression.taps
    patches, responses = sample.patches.copy(), sample.responses
    if flaw == "dead":
        patches[:, :taps] = 0
    elif flaw == "duplicate":
        patches[:, -taps:] = patches[:, :taps]
    elif flaw == "few patches":
        patches, responses = patches[:4], responses[:4]
    return sample_of(patches, responses, taps)


def refit_objective(regression: Regression, support: np.ndarray, ridge: float) -> float:
    """Relative residual of the refit on this support plus its ridge term: the training error by definition."""
    weights = refit(regression, support, ridge)
    penalty = ridge_penalty(regression, ridge)[columns_of(support, regression.taps)]
    return relative_error(regression, support, weights) + float((weights**2 @ penalty).sum()) / regression.power
