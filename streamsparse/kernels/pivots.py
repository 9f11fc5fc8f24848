"""Products in single precision of channels that hardly vary: summed about a pivot, corrected in float64.

A channel whose mean is large beside its standard deviation loses its variance in the round-off of its raw products:
with a mean of m deviations, m² of the digits. Such a channel is summed about a number near its mean, its pivot:

    Σ x yᵀ = Σ (x−p)(y−q)ᵀ + Σ(x−p)·qᵀ + p·Σ(y−q)ᵀ + n·p qᵀ          the first in float32, the rest in float64

The sums of a layer stay raw and additive: a pivot is chosen for each block of images and never stored. A constant
channel adds nothing to the first term, so its variance is 0 up to the round-off of float64. Most channels vary
enough (rectified ones nearly always) and have the pivot 0, at no cost.
(T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", Am. Statistician 37, 1983.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

SAMPLE_RUNS = 8
SAMPLE_RUN = 8  # neighbours in memory: a cache line or less
STEADY = 16.0
FEW = 16


@dataclass(frozen=True, eq=False)
class Pivots:
    """The channels that are summed about a pivot.

    Attributes:
        channels: their numbers, within all groups.
        values: (pivots,), float64.
    """

    channels: Int64[Tensor, " pivots"]
    values: Float64[Tensor, " pivots"]


def subtract_pivots(
    values: Float[Tensor, "channels ..."], *, shared: bool = False
) -> tuple[Float[Tensor, "channels ..."], Pivots | None]:
    """Find the channels that hardly vary, and subtract a pivot from each; None if there are none.

    Those are the channels whose squared mean exceeds `STEADY` variances in a small sample; in float64 there are
    none.

    Args:
        values: dense; changed in place unless shared.
        shared: others hold these numbers, so a copy is changed.
    """
    if values.dtype == torch.float64 or not values.numel():
        return values, None
    flat = values.view(len(values), -1)
    sample = _sample(flat)
    mean = sample.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(sample - mean, dim=1)
    steady = mean.squeeze(1).abs() > math.sqrt(STEADY / sample.shape[1]) * deviation
    if not bool(steady.any()):
        return values, None
    if shared:
        values = values.clone()
        flat = values.view(len(values), -1)
    channels = steady.nonzero().squeeze(1)
    pivots = mean[channels]  # (pivots, 1)
    if FEW * len(channels) <= len(values):
        flat[channels] -= pivots
    else:  # the line above copies them
        flat -= torch.where(steady[:, None], mean, 0.0)
    return values, Pivots(channels, pivots.squeeze(1).double())


def _sample(flat: Float[Tensor, "channels positions"]) -> Float[Tensor, "channels sampled"]:
    """Runs of neighbours, evenly spread."""
    spread = flat.shape[1] // SAMPLE_RUNS
    if spread <= SAMPLE_RUN:
        return flat
    runs = flat[:, : spread * SAMPLE_RUNS].view(len(flat), SAMPLE_RUNS, spread)[:, :, :SAMPLE_RUN]
    return runs.reshape(len(flat), -1)


def add_pivots(sums: Float64[Tensor, " channels"], pivots: Pivots | None, count: int) -> None:
    """Turn sums of differences into sums: Σx = Σ(x−p) + n·p, in place, over `count` positions."""
    if pivots is not None:
        sums[pivots.channels] += count * pivots.values


def add_correction(
    total: Float64[Tensor, "groups channels outputs"],
    pivots: tuple[Pivots | None, Pivots | None],
    sums: tuple[Float64[Tensor, " all_channels"], Float64[Tensor, " all_outputs"]],
    count: int,
) -> None:
    """total += Σ(x−p)·qᵀ + p·Σyᵀ, in place; Σy = Σ(y−q) + n·q.

    Args:
        total: of products of the differences, group by group.
        pivots: p and q.
        sums: Σ(x−p) over the channels of all groups, needed if there are q; Σ(y−q), needed if there are p.
        count: n, positions that were summed.
    """
    groups, channels, outputs = total.shape
    first, second = pivots
    if second is not None:
        _add_outer(total.transpose(1, 2), second, sums[0].view(groups, channels))
    if first is not None:
        whole = sums[1].clone()
        add_pivots(whole, second, count)
        _add_outer(total, first, whole.view(groups, outputs))


def _add_outer(total: Tensor, pivots: Pivots, sums: Tensor) -> None:
    """total += p·sumsᵀ group by group, in place."""
    groups, channels, _ = total.shape
    if FEW * len(pivots.channels) <= groups * channels:
        group, channel = pivots.channels // channels, pivots.channels % channels
        total[group, channel] += pivots.values[:, None] * sums[group]
    else:
        every = sums.new_zeros(groups * channels)
        every[pivots.channels] = pivots.values
        total.baddbmm_(every.view(groups, channels, 1), sums.unsqueeze(1))
