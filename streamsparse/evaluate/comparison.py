"""Two classifiers on the same images: accuracy where there are labels, agreement and divergence always."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from streamsparse.errors import DataError, ModelError
from streamsparse.events import OnEvent, ignore, reporting


@dataclass(frozen=True)
class Comparison:
    """What the pruned model does in comparison with the original.

    Attributes:
        images: how many were compared.
        original_accuracy, pruned_accuracy: fractions, or None without labels.
        agreement: fraction of images that both put into the same class.
        divergence: mean Kullback–Leibler divergence of the pruned model's class probabilities from the
            original's, in nats, float64.
    """

    images: int
    original_accuracy: float | None
    pruned_accuracy: float | None
    agreement: float
    divergence: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    original: nn.Module,
    pruned: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_images: int = 500,
    device: str = "cpu",
    workers: int = 0,
    on_event: OnEvent = ignore,
) -> Comparison:
    """Run both models over the data set, in evaluation mode.

    Args:
        original, pruned: images (images, *shape) to logits (images, classes); moved to `device`.
        dataset: items are (image, label, ...) or an image alone.

    Raises:
        DataError: no images.
        ModelError: a model does not give logits.
    """
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=batch_images, num_workers=workers)
    models = [model.to(device).eval() for model in (original, pruned)]
    totals = torch.zeros(4, dtype=torch.float64)  # correct original, correct pruned, agreeing, divergence
    images, labelled = 0, True
    with reporting("evaluate", len(dataset), "images", on_event) as advance, torch.inference_mode():  # type: ignore[arg-type]
        for item in loader:
            batch, labels = _split(item)
            logits = [_logits(model, batch.to(device)) for model in models]
            labelled = labelled and labels is not None
            totals += _counts(logits[0], logits[1], labels)
            images += len(batch)
            advance(len(batch))
    if not images:
        raise DataError(
            "There is nothing to evaluate on.", expected="at least one image", got="an empty data set",
            remedy="check --data and its split",
        )  # fmt: skip
    original_correct, pruned_correct, agreeing, divergence = (totals / images).tolist()
    return Comparison(
        images=images,
        original_accuracy=original_correct if labelled else None,
        pruned_accuracy=pruned_correct if labelled else None,
        agreement=agreeing,
        divergence=divergence,
    )


def _split(item: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(item, (list, tuple)):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    output = model(images)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise ModelError(
            "Evaluation compares classifiers.",
            expected="logits (images, classes)",
            got=tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__,
            remedy="compare other outputs with your own metric on `streamsparse.load(...)`",
        )
    return output.double().cpu()


def _counts(original: Tensor, pruned: Tensor, labels: Tensor | None) -> Tensor:
    classes = [logits.argmax(1) for logits in (original, pruned)]
    correct = [0 if labels is None else int((found == labels).sum()) for found in classes]
    wanted, given = original.log_softmax(1), pruned.log_softmax(1)
    divergence = (wanted.exp() * (wanted - given)).sum()
    return torch.tensor([*correct, int((classes[0] == classes[1]).sum()), float(divergence)], dtype=torch.float64)
