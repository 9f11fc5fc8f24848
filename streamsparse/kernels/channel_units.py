"""Channels of very different scales, brought to one scale.

The penalty ‖Λ‖² of sparse entropic regression counts all channels in the same units, those of the activations, as
the paper does. Where channels differ by orders of magnitude, ε_L2 then chooses by units instead of by use, so such
a problem is solved with every channel in units of its own root mean power; supports mean the same in both.
"""

from __future__ import annotations

import numpy as np

from streamsparse.kernels.regression import Problem, Regression

_POWER_RANGE = 1e4  # largest over smallest channel: below it, the paper's own units (real layers span some 30)
_DEAD_CHANNEL = 1e-28  # of the largest channel's power


def in_comparable_units(problem: Problem) -> Problem:
    """The same problem, with channels of unit power in every consumer where they span more than 1e4 in power."""
    return tuple(_standardised(regression) for regression in problem)


def _standardised(regression: Regression) -> Regression:
    power = regression.gram.diagonal().reshape(-1, regression.taps).mean(axis=1)
    alive = power > _DEAD_CHANNEL * power.max()
    if not alive.any() or power.max() <= _POWER_RANGE * power[alive].min():
        return regression
    scale = np.repeat(np.where(alive, 1 / np.sqrt(np.where(alive, power, 1.0)), 0.0), regression.taps)
    gram = regression.gram * scale
    gram *= scale[:, None]
    return Regression(gram, regression.cross * scale[:, None], regression.power, regression.taps)
