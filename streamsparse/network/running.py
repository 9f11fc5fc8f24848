"""Run a model for measurement: in evaluation mode, without gradients, and leave no trace."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError

ExampleInputs = Tensor | tuple[Tensor, ...]


def one_image(example_inputs: ExampleInputs) -> tuple[Tensor, ...]:
    """The example inputs as a tuple, cut to a batch of one.

    Raises:
        ModelError: an input has no first element along its batch dimension.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or any(tensor.dim() == 0 or tensor.shape[0] == 0 for tensor in inputs):
        raise ModelError(
            "The example inputs hold no image.",
            expected="tensors of shape (batch, ...), batch at least 1",
            got=[tuple(tensor.shape) for tensor in inputs],
            remedy="Pass one batch as the model takes it, for example torch.zeros(1, 3, 224, 224).",
        )
    return tuple(tensor[:1] for tensor in inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def quietly(name: str) -> Iterator[None]:
    """Without warnings and without what the logger `name` says below CRITICAL; errors still arrive as exceptions.

    For torch's exporters, which talk about their own workings.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    """One forward pass.

    Raises:
        ModelError: the model fails on these inputs, with its own message.
    """
    try:
        return model(*inputs)
    except Exception as error:
        raise ModelError(
            f"The model does not run on the example inputs: {error}",
            expected="inputs that the model takes",
            got=[f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}" for tensor in inputs],
            where=type(model).__qualname__,
            remedy="Pass example inputs of the size, dtype and device that the model is made for.",
        ) from error
