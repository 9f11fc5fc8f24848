"""Torch-Pruning's pruners as they come, cut to the same number of parameters."""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from pipelines.one_shot_bench import Bench
from pipelines.one_shot_recipes import NotComparableError

STEPS = 10
"""Of the bisection of the pruning ratio: to 0.1 % of the channels."""

_BATCH = 250


def rival(bench: Bench, by: str, reach: str, sparsity: float) -> nn.Module:
    """The network that Torch-Pruning leaves: the smallest pruning ratio that meets the number of parameters.

    Args:
        by: "magnitude" (L2 norm over the group) or "taylor" (gradients of the cross-entropy with the labels of the
            calibration images, which our own rows do not see).
        reach: "global": one ranking over all layers; "uniform": the same ratio in every layer.

    Raises:
        NotComparableError: no ratio meets it, or the tool is not installed.
    """
    if find_spec("torch_pruning") is None:
        raise NotComparableError("Torch-Pruning is not installed (extra: benchmarks)")
    original = bench.subjects.model
    limit = (1 - sparsity) * _parameters(original)
    source = _with_gradients(bench) if by == "taylor" else original
    low, high, found = 0.0, 1.0, None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        pruned = _pruned(bench, source, by, reach, ratio)
        if _parameters(pruned) <= limit:
            high, found = ratio, pruned
        else:
            low = ratio
    if found is None:
        raise NotComparableError(f"Torch-Pruning, {by}, {reach}: sparsity {sparsity:g} is not reached")
    return found.eval()


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _pruned(bench: Bench, source: nn.Module, by: str, reach: str, ratio: float) -> nn.Module:
    import torch_pruning  # type: ignore[import-untyped]

    model = copy.deepcopy(source)
    for copied, parameter in zip(model.parameters(), source.parameters(), strict=True):
        copied.grad = parameter.grad
    kinds: dict[str, Any] = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tool
        pruner = torch_pruning.pruner.BasePruner(
            model,
            bench.images.example,
            importance=kinds[by](),
            global_pruning=reach == "global",
            pruning_ratio=ratio,
            ignored_layers=[module for module in model.modules() if getattr(module, "out_features", 0) == 10],
        )
        pruner.step()
    return model


def _with_gradients(bench: Bench) -> nn.Module:
    """A copy with the gradients of the mean cross-entropy over the calibration images."""
    model = copy.deepcopy(bench.subjects.model).eval()
    sample = bench.images.indices
    for first in range(0, len(sample), _BATCH):
        images, labels = bench.subjects.calibration[list(sample[first : first + _BATCH])]
        loss = nn.functional.cross_entropy(model(images), torch.as_tensor(labels), reduction="sum") / len(sample)
        loss.backward()  # type: ignore[no-untyped-call]
    return model
