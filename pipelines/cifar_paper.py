"""What the paper cuts of VGG-16 and ResNet-18 on CIFAR-10, and the figures that it prints.

Source: T. Barisin, I. Horenko, "Towards Generalized Entropic Sparsification for Convolutional Neural Networks",
arXiv:2404.04734: table 4 (VGG-16 by groups of layers), 5 and 6 (fine-tuning against training from scratch), 8
(ResNet-18), 11 and 12 (layers).

The channel counts themselves (table 3) and the columns #parameters and FLOPs are lost in the text at hand, and
the printed sparsities do not determine them: conv8-10, for one, is met by several architectures. So a cut here
names the layers whose inputs go and the sparsity that is reached, and the counts are chosen within these layers;
counts known from elsewhere can be given with `--counts`. Three rows contradict themselves if both sparsities
count the same parameters: conv1-4 (0.02 % of the network, but 10.9 % of layers that hold 3.8 % of it), conv5-7
(2.5 %, but 16.99 % of 16.0 %), where the larger demand is met here; and conv11-12, of which 99.95 % cannot go
while conv12 keeps its 512 outputs, where the sparsity of the network is met.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

VGG_CONVOLUTIONS: Final = tuple(f"features.{n}" for n in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40))
RESNET_INNER: Final = tuple(f"layer{stage}.{block}.conv2" for stage in (1, 2, 3, 4) for block in (0, 1))
"""Convolutions whose inputs lie inside a block: conv2, conv4, ... conv16 of table 12."""


@dataclass(frozen=True)
class Printed:
    """Figures of one row; None where the table has none. Accuracies and sparsities are fractions.

    Attributes:
        accuracy: without fine-tuning.
        tuned: by epochs of fine-tuning; 0 stands for epochs that the text at hand has lost.
        sparsity: of the network; local_sparsity: of the layers that were cut.
        speed_up: time of inference before over after.
        megabytes: on disk.
    """

    accuracy: float
    tuned: dict[int, float] = field(default_factory=dict)
    sparsity: float | None = None
    local_sparsity: float | None = None
    speed_up: float | None = None
    megabytes: float | None = None


@dataclass(frozen=True)
class Cut:
    """Layers whose inputs are cut, and how far.

    Attributes:
        name: the paper's, or ours beyond the paper.
        layers: module paths; () for every layer that can be cut.
        sparsity: fraction of the network's parameters that goes.
        printed: the paper's row, if it has one.
        counts: channels kept, by group, instead of a choice within the sparsity; {} to choose.
    """

    name: str
    layers: tuple[str, ...]
    sparsity: float
    printed: Printed | None = None
    counts: dict[str, int] = field(default_factory=dict)


def _vgg(name: str, first: int, last: int, sparsity: float, printed: Printed) -> Cut:
    return Cut(name, VGG_CONVOLUTIONS[first : last + 1], sparsity, printed)


VGG_BASELINE: Final = Printed(0.9408, megabytes=57.5)
VGG_CUTS: Final = (
    _vgg("conv1-4", 1, 4, 0.0041, Printed(0.9360, {}, 0.0002, 0.109, 1.04)),
    _vgg("conv5-7", 5, 7, 0.0272, Printed(0.9087, {0: 0.9364}, 0.025, 0.1699, 1.04)),
    _vgg("conv8-10", 8, 10, 0.5459, Printed(0.9264, {0: 0.9360}, 0.5459, 0.9965, 1.4)),
    _vgg("conv11-12", 11, 12, 0.4738, Printed(0.9385, {}, 0.4738, 0.9995, 1.11)),
    _vgg("conv8-12", 8, 12, 0.8663, Printed(0.9187, {0: 0.9351}, 0.8663, 0.9950, 1.52)),
    _vgg("conv_all", 1, 12, 0.884, Printed(0.8352, {0: 0.9345}, 0.884, None, 1.64)),
    Cut("conv_all+fc", (), 0.887, Printed(0.8340, {1: 0.9239, 10: 0.9338}, 0.887, None, 1.67, 6.5)),
)
RESNET_BASELINE: Final = Printed(0.9539, megabytes=42.6)
RESNET_CUTS: Final = (
    Cut("conv(14,16)", RESNET_INNER[6:], 0.652, Printed(0.9377, {1: 0.947, 20: 0.951}, 0.652)),
    Cut("conv_all", RESNET_INNER[2:], 0.736, Printed(0.8819, {1: 0.9403, 50: 0.9491}, 0.736, megabytes=11.3)),
    Cut("conv_all+streams", (), 0.736),
)

# Tables 5 and 6, conv_all+fc: accuracy by epoch, as far as the text tells which epoch it is.
VGG_BY_EPOCH: Final = {
    "fine-tuned": {0: 0.8340, 1: 0.9239, 10: 0.9338},
    "from scratch": {0: 0.10, 1: 0.4165, 10: 0.8386, 200: 0.9088, 250: 0.9377, 280: 0.9402},
}
