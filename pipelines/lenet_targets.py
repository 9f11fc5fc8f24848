"""The paper's pruned LeNets, what it reports of them, and the records of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pipelines.lenet_recipes import FINE_TUNING
from pipelines.mnist import EMBEDDED_TRAINING_IMAGES
from pipelines.recipe import Recipe


@dataclass(frozen=True)
class Target:
    """One architecture of the paper's tables 1 and 2 and the figures printed there.

    Source: T. Barisin, I. Horenko, "Towards Generalized Entropic Sparsification for Convolutional Neural
    Networks", arXiv:2404.04734.

    Attributes:
        name: the paper's.
        channels: kept, by channel group; the other groups stay whole.
        parameters: of the pruned network.
        paper_one_shot, paper_fine_tuned: accuracy on the test images, fractions.
    """

    name: str
    channels: dict[str, int]
    parameters: int
    paper_one_shot: float
    paper_fine_tuned: float

    def checkpoint(self, suffix: str = "") -> str:
        """Name of its checkpoint in a run."""
        return "-".join([self.name.replace("+", "-"), *([suffix] if suffix else [])])


E1: Final = Target("E1", {"conv1": 8}, 36_498, 0.9849, 0.9903)
E2: Final = Target("E2", {"conv1": 4}, 23_894, 0.9735, 0.9873)
E1_FC_V1: Final = Target("E1+fc-v1", {"conv1": 8, "fc1": 104, "fc2": 43}, 27_223, 0.9787, 0.9892)
E1_FC_V2: Final = Target("E1+fc-v2", {"conv1": 8, "fc1": 40, "fc2": 18}, 10_332, 0.9689, 0.9847)
PAPER: Final = (E1, E2, E1_FC_V1, E1_FC_V2)


@dataclass(frozen=True)
class Settings:
    """One experiment.

    Attributes:
        targets: architectures to make, all from one capture.
        images: of the embedded training images to capture over.
        seed: of that sample, and of the first fine-tuning.
        recipe: of the fine-tuning.
        repeats: fine-tunings of each network, with the seeds `seed`, `seed` + 1, ...
        independent: also measure the weights that follow from one capture alone, without the refit in order.
    """

    targets: tuple[Target, ...] = PAPER
    images: int = EMBEDDED_TRAINING_IMAGES
    seed: int = 0
    recipe: Recipe = field(default=FINE_TUNING)
    repeats: int = 1
    independent: bool = True

    @property
    def tuning_seeds(self) -> range:
        return range(self.seed, self.seed + self.repeats)


@dataclass(frozen=True)
class Baseline:
    """The original network; `bytes` is the size of its safetensors file."""

    accuracy: float
    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class PrunedLeNet:
    """One pruned network, measured after loading its checkpoints.

    Attributes:
        name: of the target.
        sparsity: fraction of the parameters that was removed.
        accuracy_one_shot: with weights re-estimated in order, before any training.
        accuracy_independent: with weights from one capture alone, or None when that was not asked for.
        accuracy_fine_tuned: of the first seed.
        accuracy_fine_tuned_by_seed: of every seed.
        macs: multiply-accumulate operations for one image.
        bytes: of `model.safetensors`.
        checkpoint: path of the one-shot network; checkpoint_fine_tuned: of the first seed's.
    """

    name: str
    channels: dict[str, int]
    parameters: int
    sparsity: float
    accuracy_one_shot: float
    accuracy_independent: float | None
    accuracy_fine_tuned: float
    accuracy_fine_tuned_by_seed: dict[int, float]
    macs: int
    bytes: int
    checkpoint: str
    checkpoint_fine_tuned: str
