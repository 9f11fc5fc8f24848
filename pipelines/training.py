"""Training and fine-tuning of image classifiers on tensors that fit in memory.

Everything random is drawn from the recipe's seed: on a CPU the same recipe, data, versions and number of
threads give the same weights bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.recipe import Distillation, Epoch, Recipe
from pipelines.training_state import Keeper, TrainingState
from streamsparse.errors import DataError, NonFiniteError
from streamsparse.events import OnEvent, ignore, reporting

Labelled = tuple[Tensor, Tensor]  # float32 (images, channels, height, width) and int64 (images,)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, logits (images, classes), labels -> scalar


def train_classifier(
    model: nn.Module,
    data: Labelled,
    recipe: Recipe,
    *,
    validation: Labelled | None = None,
    keeper: Keeper | None = None,
    on_event: OnEvent = ignore,
) -> list[Epoch]:
    """Train `model` in place on cross entropy; it ends in evaluation mode, with the last epoch's weights.

    Args:
        model: float32 images (images, channels, height, width) to logits (images, classes).
        data: training images and labels.
        recipe: how.
        validation: images and labels that are only measured, after every epoch; they choose nothing.
        keeper: keeps every epoch, and gives back those of an earlier call.
        on_event: hears of progress by batches, as stage "train".

    Returns:
        One record for each epoch.

    Raises:
        DataError: no images, or another number of labels.
        NonFiniteError: the loss became NaN or infinite.
    """
    return _train(model, data, recipe, _cross_entropy, validation, "train", keeper, on_event)


def fine_tune(
    model: nn.Module,
    data: Labelled,
    recipe: Recipe,
    *,
    distillation: Distillation | None = None,
    validation: Labelled | None = None,
    keeper: Keeper | None = None,
    on_event: OnEvent = ignore,
) -> list[Epoch]:
    """Train a pruned `model` further, with the original as its teacher when `distillation` is given.

    Otherwise as `train_classifier`; its stage is "fine_tune".
    """
    if distillation is None:
        return _train(model, data, recipe, _cross_entropy, validation, "fine_tune", keeper, on_event)
    teacher = distillation.teacher
    was_training = teacher.training
    teacher.to(recipe.device).eval()
    try:
        return _train(model, data, recipe, _distilling(distillation), validation, "fine_tune", keeper, on_event)
    finally:
        teacher.train(was_training)


@torch.no_grad()
def accuracy(model: nn.Module, data: Labelled, *, batch_size: int = 1000, device: str = "cpu") -> float:
    """The fraction of images that `model`, in evaluation mode, puts into the right class.

    Raises:
        DataError: no images, or another number of labels.
    """
    images, labels = _checked(data)
    was_training = model.training
    model.to(device).eval()
    correct = 0
    for some_images, some_labels in zip(
        torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
    ):
        predicted = model(some_images.to(device)).argmax(1)
        correct += int((predicted == some_labels.to(device)).sum())
    model.train(was_training)
    return correct / len(labels)


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image of (images, channels, height, width) moved by up to `pixels` in each direction, at random.

    The border is filled with the darkest value of the batch.
    """
    count, channels, height, width = images.shape
    padded = functional.pad(images, (pixels,) * 4, value=float(images.min()))
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # (images, height)
    columns = offsets[1] + torch.arange(width, device=images.device)  # (images, width)
    image = torch.arange(count, device=images.device)
    channel = torch.arange(channels, device=images.device)
    return padded[
        image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (images, channels, height, width) mirrored left to right or not, at random."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _train(
    model: nn.Module,
    data: Labelled,
    recipe: Recipe,
    loss: Loss,
    validation: Labelled | None,
    stage: str,
    keeper: Keeper | None,
    on_event: OnEvent,
) -> list[Epoch]:
    images, labels = (tensor.to(recipe.device) for tensor in _checked(data))
    model.to(recipe.device)
    layout = torch.channels_last if recipe.mixed_precision else torch.contiguous_format
    model.to(memory_format=layout)
    state = TrainingState(model, _optimizer(model, recipe), torch.Generator().manual_seed(recipe.seed))
    batches = math.ceil(len(labels) / recipe.batch_size)  # of one epoch
    with reporting(stage, recipe.epochs * batches, "batches", on_event) as advance, _seeded(recipe):
        history = [] if keeper is None else keeper.restore(state)
        if history:
            advance(len(history) * batches)
        for epoch in range(len(history), recipe.epochs):
            model.train()
            mean_loss = _one_epoch(state, (images, labels), recipe, epoch, loss, advance)
            if not math.isfinite(mean_loss):
                raise NonFiniteError(
                    "training diverged",
                    expected="a finite loss",
                    got=mean_loss,
                    where=f"epoch {epoch + 1} of {recipe.epochs}",
                    remedy="look for NaN in the images and the starting weights, or lower the learning rate",
                )
            measured = None if validation is None else accuracy(model, validation, device=recipe.device)
            history.append(Epoch(recipe.learning_rate_in(epoch), mean_loss, measured))
            if keeper is not None:
                keeper.store(state, history)
    model.to(memory_format=torch.contiguous_format).eval()
    return history


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.sgd:
        return torch.optim.SGD(
            model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
        )
    return torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )


def _one_epoch(
    state: TrainingState,
    data: Labelled,
    recipe: Recipe,
    epoch: int,
    loss: Loss,
    advance: Callable[[int], None],
) -> float:
    model, optimizer = state.model, state.optimizer
    total = torch.zeros((), device=recipe.device)
    seen = 0
    for images, labels in _batches(data, recipe, state.generator):
        for settings in optimizer.param_groups:
            settings["lr"] = recipe.learning_rate_in(epoch + seen / len(data[1]))
        seen += len(labels)
        if recipe.mixed_precision:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.mixed_precision):
            value = loss(images, model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += value.detach() * len(labels)
        advance(1)
    return float(total) / len(data[1])


def _batches(data: Labelled, recipe: Recipe, generator: torch.Generator) -> Iterator[Labelled]:
    images, labels = data
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    for chosen in torch.split(order, recipe.batch_size):
        some = images[chosen]
        some = shifted(some, recipe.shift_pixels, generator) if recipe.shift_pixels else some
        yield (flipped(some, generator) if recipe.flip else some), labels[chosen]


def _cross_entropy(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels)


def _distilling(distillation: Distillation) -> Loss:
    temperature, weight = distillation.temperature, distillation.weight

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.log_softmax(distillation.teacher(images) / temperature, 1)
        given = functional.log_softmax(logits / temperature, 1)
        divergence = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        # The square keeps the gradient's size independent of the temperature (Hinton et al., section 2.1).
        from_teacher = weight * temperature**2 * divergence
        return from_teacher + (1 - weight) * functional.cross_entropy(logits, labels)

    return loss


@contextmanager
def _seeded(recipe: Recipe) -> Iterator[None]:
    """Dropout and the like draw from the recipe's seed; the caller's random state is as before afterwards."""
    device = torch.device(recipe.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        yield


def _checked(data: Labelled) -> Labelled:
    images, labels = data
    if len(images) == 0 or labels.shape != (len(images),):
        raise DataError(
            "images and labels do not fit together",
            expected="at least one image, and one label for each",
            got=f"{len(images)} images, labels of shape {tuple(labels.shape)}",
            remedy="give a data set of (image, label) pairs",
        )
    return images, labels
