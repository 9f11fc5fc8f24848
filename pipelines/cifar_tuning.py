"""Training of what was cut: fine-tuning, by the original or by labels alone, and the same network from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from pipelines.cifar_cuts import checkpoint_name
from pipelines.cifar_networks import anew, identity
from pipelines.cifar_paper import Cut
from pipelines.cifar_rows import kept_row
from pipelines.cifar_stages import Bench
from pipelines.lenet_stages import renamed
from pipelines.recipe import Distillation, Epoch, Recipe
from pipelines.training import accuracy, fine_tune, train_classifier
from pipelines.training_state import TrainingFolder
from streamsparse.errors import CheckpointError
from streamsparse.events import OnEvent
from streamsparse.write.checkpoint import decode_checkpoint, encode_checkpoint, verify_checkpoint
from streamsparse.write.description import CONFIG_FILE

TEMPERATURE: Final = 4.0  # of the distillation


def tuned(bench: Bench, cut: Cut) -> dict[str, Any]:
    """Fine-tune the written one-shot network: accuracy of what was written, and by epoch on the way."""
    recipe = bench.settings.tuning
    if recipe is None:
        return {"accuracy_fine_tuned": None}
    start = bench.run.read_checkpoint(checkpoint_name(cut))
    asked = identity(recipe, bench.pictures, decode_checkpoint(start, bench.fresh()), _taught(bench))
    return _row(bench, cut, "tuned", recipe, asked, start)


def original_tuned(bench: Bench) -> dict[str, Any]:
    """Fine-tune a copy of the original as its pruned versions are, if that was asked for: what the epochs gain."""
    recipe, name = bench.settings.tuning, "original-tuned"
    if recipe is None or not bench.settings.tune_original:
        return {}
    asked = identity(recipe, bench.pictures, bench.original.model, _taught(bench))
    on_event = renamed(bench.on_event, name)

    def make() -> dict[str, Any]:
        keeper = TrainingFolder(bench.folder / "training", name, asked)
        model = deepcopy(bench.original.model)
        with bench.timed("fine_tune"):
            epochs = _trained(bench, model, "tuned", recipe, keeper, on_event)
        with bench.timed("evaluate"):
            measured = accuracy(model, bench.pictures.test, device=recipe.device)
        by_epoch = [epoch.validation_accuracy for epoch in epochs]
        return {"accuracy_fine_tuned": measured, "accuracy_fine_tuned_by_epoch": by_epoch}

    return kept_row(bench.folder, name, asked, bench.seconds, make, on_event)


def from_scratch(bench: Bench, cut: Cut) -> dict[str, Any]:
    """Train the same architecture from fresh weights, as the original was trained."""
    epochs = bench.settings.scratch_epochs
    if not epochs:
        return {}
    recipe = replace(bench.settings.training, epochs=epochs)
    start = bench.run.read_checkpoint(checkpoint_name(cut))
    asked = identity(recipe, bench.pictures, _start(bench, start, "scratch", recipe))
    return _row(bench, cut, "scratch", recipe, asked, start)


def _taught(bench: Bench) -> dict[str, Any] | None:
    share = bench.settings.teacher_share
    return {"digest": bench.original.digest, "share": share} if share else None


def _row(
    bench: Bench, cut: Cut, kind: str, recipe: Recipe, asked: Mapping[str, Any], start: dict[str, bytes]
) -> dict[str, Any]:
    name = checkpoint_name(cut, kind)
    on_event = renamed(bench.on_event, name)

    def make() -> dict[str, Any]:
        model = _start(bench, start, kind, recipe)
        keeper = TrainingFolder(bench.folder / "training", name, asked)
        with bench.timed("fine_tune" if kind == "tuned" else "from_scratch"):
            epochs = _trained(bench, model, kind, recipe, keeper, on_event)
        with bench.timed("write"):
            _write(bench, name, model.cpu(), start, {"kind": kind, **asked})
        with bench.timed("evaluate"):
            loaded = decode_checkpoint(bench.run.read_checkpoint(name), bench.fresh())
            measured = accuracy(loaded, bench.pictures.test, device=recipe.device)
        return _figures(bench, kind, name, measured, epochs)

    return kept_row(bench.folder, name, asked, bench.seconds, make, on_event)


def _trained(
    bench: Bench, model: nn.Module, kind: str, recipe: Recipe, keeper: TrainingFolder, on_event: OnEvent
) -> list[Epoch]:
    data, test = bench.pictures.training, bench.pictures.test
    if kind == "scratch":
        return train_classifier(model, data, recipe, validation=test, keeper=keeper, on_event=on_event)
    share = bench.settings.teacher_share
    distillation = Distillation(bench.original.model, TEMPERATURE, share) if share else None
    return fine_tune(
        model, data, recipe, distillation=distillation, validation=test, keeper=keeper, on_event=on_event
    )


def _start(bench: Bench, start: dict[str, bytes], kind: str, recipe: Recipe) -> nn.Module:
    model = decode_checkpoint(start, bench.fresh())
    return anew(model, recipe.seed) if kind == "scratch" else model


def _figures(bench: Bench, kind: str, name: str, measured: float, epochs: list[Epoch]) -> dict[str, Any]:
    what = "fine_tuned" if kind == "tuned" else "from_scratch"
    return {
        f"accuracy_{what}": measured,
        f"accuracy_{what}_by_epoch": [epoch.validation_accuracy for epoch in epochs],
        f"checkpoint_{what}": str(bench.folder / "run" / "checkpoints" / name),
    }


def _write(
    bench: Bench, name: str, model: nn.Module, start: dict[str, bytes], provenance: Mapping[str, Any]
) -> None:
    """A checkpoint like any other, that says how it was trained; and see that it loads as it is."""
    config = verify_checkpoint(start)[0].config
    statistics = {**config.statistics, "trained": dict(provenance)}
    encoded = encode_checkpoint(model, replace(config, statistics=statistics, created=None))
    with bench.run.lock():
        bench.run.write_checkpoint(name, encoded, last=CONFIG_FILE)
    loaded = decode_checkpoint(bench.run.read_checkpoint(name), bench.fresh()).eval()
    images = bench.pictures.test[0][:100]
    with torch.inference_mode():
        same = torch.equal(model.eval()(images), loaded(images))
    if not same:
        raise CheckpointError(
            "The loaded network computes something else than the one that was written.",
            expected="the same logits bit for bit", got="different logits", where=name,
            remedy="Do not use this checkpoint; report it as a bug of streamsparse.",
        )  # fmt: skip


def recipe_in_words(recipe: Recipe | None) -> str:
    """One phrase."""
    if recipe is None:
        return "none"
    shape = "cosine" if recipe.cosine else "one cycle" if recipe.one_cycle else f"halved every {recipe.halve_every}"
    kind = f"SGD (momentum {recipe.momentum:g})" if recipe.sgd else "Adam"
    extras = [f"weight decay {recipe.weight_decay:g}", f"batches of {recipe.batch_size}"]
    extras += [f"crops with {recipe.shift_pixels} pixels of padding"] if recipe.shift_pixels else []
    extras += ["flips"] if recipe.flip else []
    extras += ["bfloat16"] if recipe.mixed_precision else []
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    return f"{epochs} of {kind}, rate {recipe.learning_rate:g}, {shape}, " + ", ".join(extras)


def tuning_in_words(recipe: Recipe | None, teacher_share: float) -> str:
    """The same, with who teaches."""
    taught = f", the original as teacher ({teacher_share:.0%} of the loss)" if recipe and teacher_share else ""
    return recipe_in_words(recipe) + taught
