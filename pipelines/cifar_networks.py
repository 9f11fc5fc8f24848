"""The networks of the paper's CIFAR-10 experiments: built, trained with its recipe, or read from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from pipelines.cifar_data import Pictures
from pipelines.cifar_paper import RESNET_BASELINE, RESNET_CUTS, VGG_BASELINE, VGG_BY_EPOCH, VGG_CUTS, Cut, Printed
from pipelines.networks import Resnet18, Vgg16, weights_file
from pipelines.recipe import Epoch, Recipe
from pipelines.training import train_classifier
from pipelines.training_state import TrainingFolder
from streamsparse.errors import DataError
from streamsparse.events import OnEvent
from streamsparse.intake.weights import load_weights
from streamsparse.network.weights import weights_digest

# The paper's: 200 epochs of SGD, cosine. Rate, batch, crops and flips are those of the open-source implementation
# that it trained with; its text at hand has lost the numbers.
TRAINING: Final = Recipe(
    epochs=200,
    learning_rate=0.1,
    batch_size=128,
    shift_pixels=4,
    flip=True,
    sgd=True,
    weight_decay=5e-4,
    cosine=True,
)
# The paper's: a hundredth of the rate, 5 to 50 epochs.
FINE_TUNING: Final = replace(TRAINING, epochs=10, learning_rate=TRAINING.learning_rate / 100)


@dataclass(frozen=True)
class Network:
    """An architecture with what the paper says of it.

    Attributes:
        name: of files and options; title: for people.
        constructor: a module for 10 classes; spec: the same for `--model` of the command line.
        head: its last linear layer, which has one output per class.
        cuts: the paper's, and ours at its sparsities; sparsities: of the free choice over all layers.
        printed: the paper's baseline; by_epoch: its accuracies by epoch of training.
    """

    name: str
    title: str
    constructor: Callable[[], nn.Module]
    spec: str
    head: str
    cuts: tuple[Cut, ...]
    sparsities: tuple[float, ...]
    printed: Printed
    by_epoch: dict[str, dict[int, float]]

    def fresh(self, classes: int = 10) -> nn.Module:
        """Untrained, with one output for each class."""
        model = self.constructor()
        head = model.get_submodule(self.head)
        assert isinstance(head, nn.Linear)
        if classes != head.out_features:
            model.set_submodule(self.head, nn.Linear(head.in_features, classes))
        return model


VGG16: Final = Network(
    "vgg16", "VGG-16", Vgg16, "pipelines.networks:Vgg16", "classifier", VGG_CUTS, (0.93, 0.96, 0.98), VGG_BASELINE,
    VGG_BY_EPOCH,
)  # fmt: skip
RESNET18: Final = Network(
    "resnet18", "ResNet-18", Resnet18, "pipelines.networks:Resnet18", "linear", RESNET_CUTS, (0.736, 0.85, 0.93),
    RESNET_BASELINE, {},
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Original:
    """A trained network, in evaluation mode on the CPU.

    Attributes:
        origin: file or recipe, in words.
        digest: of its tensors.
        epochs: of the training, or () for weights from a file.
    """

    model: nn.Module
    origin: str
    digest: str
    epochs: tuple[Epoch, ...] = ()


def weights_at_hand(network: Network, dataset: str, weights: Path | None) -> Path | None:
    """The file to read: the one that was given, else the one that `shared/models` holds for this data set."""
    if weights is not None:
        return weights
    shared = weights_file(network.name)
    return shared if dataset == "fashion-mnist" and shared.is_file() else None


def original(
    network: Network, pictures: Pictures, weights: Path | None, recipe: Recipe, folder: Path, on_event: OnEvent
) -> Original:
    """Read the weights, or train; a killed training goes on after its last whole epoch.

    Args:
        weights: a safetensors file; None: see `weights_at_hand`.
        recipe: of the training.
        folder: where trainings are kept.

    Raises:
        WeightsError: a file that is not this network's.
        DataError: the networks take 32×32 pixels.
    """
    require_size(pictures)
    file = weights_at_hand(network, pictures.spec, weights)
    model = seeded(lambda: network.fresh(pictures.classes), recipe.seed)
    if file is not None:
        load_weights(model, file)
        return Original(model.eval(), f"weights from {file.name}", weights_digest(model.state_dict()))
    keeper = TrainingFolder(folder, f"original-{network.name}", identity(recipe, pictures, model))
    epochs = train_classifier(
        model, pictures.training, recipe, validation=pictures.test, keeper=keeper, on_event=on_event
    )
    words = f"trained for {recipe.epochs} epochs, seed {recipe.seed}"
    return Original(model.cpu().eval(), words, weights_digest(model.state_dict()), tuple(epochs))


def require_size(pictures: Pictures) -> None:
    """Refuse pictures that these networks do not take."""
    shape = tuple(pictures.training[0].shape[1:])
    if shape != (3, 32, 32):
        raise DataError("These pictures have another size.", expected=(3, 32, 32), got=shape, where=pictures.spec)


def anew(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with the weights that its layers draw at their construction; changed in place."""

    def reset() -> nn.Module:
        for module in model.modules():
            if callable(draw := getattr(module, "reset_parameters", None)):
                draw()
        return model

    return seeded(reset, seed)


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `make` draws with this seed; the caller's random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def identity(
    recipe: Recipe, pictures: Pictures, start: nn.Module, teacher: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that determines the result of a training on one machine."""
    return {
        "recipe": asdict(recipe),
        "data": pictures.digest,
        "began_with": weights_digest(start.state_dict()),
        "teacher": teacher,
    }
