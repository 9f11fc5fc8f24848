"""How a classifier is trained, and the record of how it went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from torch import nn

from streamsparse.errors import UsageError

ONE_CYCLE_RISE: Final = 0.2
ONE_CYCLE_START: Final = 1 / 25
ONE_CYCLE_END: Final = 1 / 1000


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam or SGD, with a learning rate that is halved at intervals, goes up and down once, or falls.

    Attributes:
        epochs: passes over the training images.
        learning_rate: the optimiser's, in the first epoch; with `one_cycle` the highest.
        halve_every: epochs between two halvings of the learning rate.
        one_cycle: instead, rise from 1/25 of it over the first fifth of all steps and fall to 1/1000 along cosines
            (L. Smith, N. Topin, "Super-convergence", arXiv:1708.07120).
        batch_size: images per step; a smaller remainder of an epoch is used too.
        shift_pixels: each image is moved by up to this many pixels in each direction, at random, and filled
            with its own darkest value; 0 leaves the images alone.
        seed: of the order of the images and of the shifts.
        device: as `torch.device` takes it.
        mixed_precision: bfloat16 products, channels last in memory; for CUDA, and for processors that have
            instructions for it (2.0 and 2.8 times faster on one with AVX-512 BF16, VGG-16 whole and pruned).
        cosine: instead of the halving, fall from the rate to zero along half a cosine, batch by batch
            (I. Loshchilov, F. Hutter, "SGDR", arXiv:1608.03983, equation 5 without restarts).
        sgd: stochastic gradient descent with `momentum` instead of Adam.
        weight_decay: of either, as an L2 penalty on all parameters.
        flip: each image is mirrored left to right with probability one half.
    """

    epochs: int = 20
    learning_rate: float = 1e-3
    halve_every: int = 7
    batch_size: int = 64
    shift_pixels: int = 0
    seed: int = 0
    device: str = "cpu"
    mixed_precision: bool = False
    one_cycle: bool = False
    cosine: bool = False
    sgd: bool = False
    momentum: float = 0.9
    weight_decay: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        positive = (self.epochs, self.learning_rate, self.halve_every, self.batch_size)
        if min(positive) <= 0 or self.shift_pixels < 0:
            raise UsageError(
                "a training recipe is out of range",
                expected="positive epochs, learning rate, halving interval and batch size; no negative shift",
                got=self,
                remedy="correct the recipe",
            )
        if (self.one_cycle and self.cosine) or not (0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise UsageError(
                "a training recipe contradicts itself",
                expected="one schedule, momentum in [0, 1), no negative weight decay",
                got=self,
                remedy="correct the recipe",
            )

    def learning_rate_in(self, epoch: float) -> float:
        """The learning rate after so many epochs, of which a part may be one."""
        if self.cosine:
            return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        if not self.one_cycle:
            return float(self.learning_rate * 0.5 ** (epoch // self.halve_every))
        done = epoch / self.epochs
        rising = done < ONE_CYCLE_RISE
        share = done / ONE_CYCLE_RISE if rising else (1 - done) / (1 - ONE_CYCLE_RISE)
        least = ONE_CYCLE_START if rising else ONE_CYCLE_END
        return self.learning_rate * (least + (1 - least) * (1 - math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class Distillation:
    """Learning from the logits of another network as well as from the labels.

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531.

    Attributes:
        teacher: takes the same images and gives the same classes; it is not changed.
        temperature: divides both networks' logits before the softmax.
        weight: of the teacher's share of the loss, 0 to 1; the labels have the rest.
    """

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 <= self.weight <= 1):
            raise UsageError(
                "a distillation is out of range",
                expected="temperature > 0 and 0 <= weight <= 1",
                got=f"temperature {self.temperature}, weight {self.weight}",
                remedy="correct the distillation",
            )


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        learning_rate: at its beginning.
        loss: mean over the training images, while the weights were changing.
        validation_accuracy: fraction, after the epoch; None without validation images.
    """

    learning_rate: float
    loss: float
    validation_accuracy: float | None
