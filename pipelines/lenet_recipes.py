"""How LeNet is trained and how its pruned versions are tuned; figures of training are in `data/README.md`."""

from __future__ import annotations

from typing import Final

from torch import nn

from pipelines.recipe import Distillation, Recipe

# The paper's: 20 epochs of Adam, the learning rate halved every 7.
TRAINING: Final = Recipe(epochs=20, learning_rate=1e-3, halve_every=7, batch_size=64)

# The paper's length and schedule: 10 epochs, halved every 4. The original network as a teacher and shifts by up to
# one pixel are ours: the smallest networks do not reach their accuracy from the labels alone.
FINE_TUNING: Final = Recipe(epochs=10, learning_rate=1e-3, halve_every=4, batch_size=128, shift_pixels=1)

# For networks with a twentieth of the parameters, which have far to go: a higher rate that goes up and down once.
FAR_TUNING: Final = Recipe(epochs=10, learning_rate=5e-3, batch_size=128, shift_pixels=1, one_cycle=True)

# For the demonstration: a few seconds on the 20,000 embedded images. Shifts need more epochs than two to pay.
SHORT_FINE_TUNING: Final = Recipe(epochs=2, learning_rate=2e-3, halve_every=1, batch_size=256)


def taught_by(original: nn.Module) -> Distillation:
    """The original LeNet as the teacher of its pruned versions, as both recipes for tuning want it."""
    return Distillation(original, temperature=4.0, weight=0.9)
