"""The divergence that changed layers cause, to second order, from gradients: no pass through a changed network.

A change d of a layer's output y makes the divergence dᵀ F d / 2, F = E[g gᵀ], g = ∂ log p(c)/∂y with c drawn from
the model's own p (S. Amari, Neural Computation 10, 1998; for pruning L. Theis et al., arXiv:1801.05787). Image by
image

    gᵀd = Σ over positions and outputs of g · (y' - y)      y' is the changed layer on the original's input

and the products of all layers that change together add before they are squared. The trace of F alone, with d taken
to be white, misses that a residual points where the network looks: on VGG-16 it came out 8 to 100 times too small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamsparse.errors import ModelError
from streamsparse.kernels.divergence import measure_of
from streamsparse.network.replay import output_of
from streamsparse.network.running import evaluating

EXACT_CLASSES = 16
DRAWS = 8
LayerTensors = Mapping[str, Mapping[str, Tensor]]
"""Other weights: by layer, by parameter name ("weight", "bias")."""
_Call = tuple[str, tuple[Tensor, ...], Tensor]
"""A layer, its inputs and its output."""


def quadratic_losses(
    model: nn.Module, changes: Sequence[LayerTensors], images: Sequence[Tensor], *, seed: int = 0
) -> list[float]:
    """Mean divergence from the original, to second order, of the model with each of the changes, nats per image.

    The expectation over classes is exact for up to EXACT_CLASSES of them, with a backward pass for each; for more,
    it is estimated from DRAWS passes over all classes with random signs (M. Hutchinson, Communications in
    Statistics 18, 1989).

    Args:
        model: images to logits (images, classes); left as it is.
        changes: each of some layers that return one tensor; on the model's device.
        images: batches on the model's device.
        seed: of the signs.

    Raises:
        ModelError: outputs that are not class logits.
    """
    layers = list(dict.fromkeys(layer for change in changes for layer in change))
    losses = [0.0] * len(changes)
    generator = torch.Generator().manual_seed(seed)
    for batch in images:
        with evaluating(model):
            with torch.enable_grad(), _watching(model, layers) as calls:
                gradients = _gradients(_log_probabilities(model, batch), calls, generator)
            for number, change in enumerate(changes):
                losses[number] += _loss(model, change, calls, gradients)
    count = sum(len(batch) for batch in images)
    return [loss / count for loss in losses]


def _loss(
    model: nn.Module, change: LayerTensors, calls: Sequence[_Call], gradients: Sequence[list[Tensor]]
) -> float:
    """Σ over images and draws of (gᵀd)²/2."""
    slopes = torch.zeros(len(gradients), len(calls[0][2]), dtype=torch.float64, device=calls[0][2].device)
    for place, (layer, inputs, output) in enumerate(calls):
        if layer in change:
            difference = functional_call(model.get_submodule(layer), dict(change[layer]), inputs) - output
            for draw, gradient in enumerate(gradients):
                slopes[draw] += (gradient[place] * difference).flatten(1).sum(1, dtype=torch.float64)
    return float(slopes.square().sum()) / 2


def _gradients(log_p: Tensor, calls: list[_Call], generator: torch.Generator) -> list[list[Tensor]]:
    """For every draw, the gradient at the output of every call."""
    outputs = [output for _, _, output in calls]
    terms = _terms(log_p.detach(), generator)
    found = []
    for number, weights in enumerate(terms):
        chosen = (weights * log_p).sum()  # images do not see each other in evaluation
        last = number + 1 == len(terms)
        given = torch.autograd.grad(chosen, outputs, retain_graph=not last, allow_unused=True)
        pairs = zip(given, outputs, strict=True)
        found.append([torch.zeros_like(out) if gradient is None else gradient for gradient, out in pairs])
    calls[:] = [(layer, inputs, output.detach()) for layer, inputs, output in calls]  # the graph is not needed now
    return found


def _terms(log_p: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Weights (images, classes) whose squared sums add up to, or are expected to be, E over classes of squares."""
    roots = (log_p / 2).exp()
    images, classes = roots.shape
    if classes <= EXACT_CLASSES:
        ones = torch.eye(classes, dtype=roots.dtype, device=roots.device)
        return [roots * ones[c] for c in range(classes)]
    signs = torch.randint(0, 2, (DRAWS, images, classes), generator=generator).to(roots) * 2 - 1
    return list(signs * roots / DRAWS**0.5)


@contextmanager
def _watching(model: nn.Module, layers: Sequence[str]) -> Iterator[list[_Call]]:
    """Collect the layers' calls, their outputs as points to differentiate at."""
    calls: list[_Call] = []

    def watch(layer: str, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        calls.append((layer, tuple(tensor.detach().clone() for tensor in inputs), output))
        return output.clone()  # an activation after it may work in place

    hooks = [model.get_submodule(layer).register_forward_hook(partial(watch, layer)) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    logits = output_of(model, images)
    if measure_of(logits) != "divergence":
        raise ModelError(
            "Fisher information is about class probabilities.",
            expected="logits (images, classes), two classes or more",
            got=tuple(logits.shape),
            where=type(model).__qualname__,
            remedy="measure by forward passes: --by kl",
        )
    return logits.log_softmax(1)
