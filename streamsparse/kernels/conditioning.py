"""How well a regression's inputs tell themselves apart: condition and rank of their correlations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.linalg import eigvalsh

from streamsparse.kernels.precision import precision_of

_DECOMPOSITION = 10.0  # machine epsilons per column, relative to the largest eigenvalue
_DEAD_COLUMN = 1e-28  # of the largest column's power, as in `regression`


@dataclass(frozen=True)
class Conditioning:
    """Of one Gram.

    Attributes:
        condition: largest over smallest eigenvalue above round-off; 1 of a Gram without any.
        rank: number of eigenvalues above round-off; columns that never vary count as none.
    """

    condition: float
    rank: int


def conditioning(gram: Float64[np.ndarray, "columns columns"], products: str) -> Conditioning:
    """Condition and rank of a centred Gram whose columns are brought to unit power.

    Sums of products that are each rounded by a relative u, independently, are off by a random matrix of entries up
    to u, whose largest eigenvalue is about 2u√n (E. Wigner, Annals of Mathematics 67, 1958); rounding that depends
    on the entries scales the eigenvalues themselves, and so do the centring and the decomposition in float64, n
    times. What is not above all of these is round-off.

    Args:
        gram: about the means, or about the origin for a layer without a bias.
        products: that it was summed from, a name of `PRECISIONS`.
    """
    power = gram.diagonal()
    alive = np.flatnonzero(power > _DEAD_COLUMN * max(float(power.max(initial=0.0)), np.finfo(float).tiny))
    if not alive.size:
        return Conditioning(1.0, 0)
    scale = 1 / np.sqrt(power[alive])
    correlation = gram[np.ix_(alive, alive)] * scale
    correlation *= scale[:, None]
    eigenvalues = eigvalsh(correlation, overwrite_a=True, check_finite=False)  # ascending
    columns, largest = len(alive), float(eigenvalues[-1])
    unit = torch.finfo(precision_of(products).computed).eps
    decomposed = _DECOMPOSITION * columns * np.finfo(np.float64).eps * largest
    above = eigenvalues[eigenvalues > max(unit * max(largest, 2 * np.sqrt(columns)), decomposed)]
    return Conditioning(float(above[-1] / above[0]), len(above))
