"""What an accumulation did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AccumulateReport:
    """What an accumulation did.

    Attributes:
        layers: summed now; reused_layers: found committed from the same batches and settings.
        images: per layer.
        patches: rows over all layers summed now.
        seconds: wall time.
    """

    layers: int
    reused_layers: int
    images: int
    patches: int
    seconds: float
