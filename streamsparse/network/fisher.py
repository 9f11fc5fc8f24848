"""Fisher information about a layer's output: how much the class probabilities turn on it.

A change d of a layer's output y changes log p(class) so that the divergence is dᵀ F d / 2 to second order, with
F = E[g gᵀ], g = ∂ log p(c)/∂y and c drawn from the model's own p (S. Amari, Neural Computation 10, 1998; for
pruning L. Theis et al., arXiv:1801.05787). Its trace, over all outputs of a layer, costs backward passes and no
labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from streamsparse.errors import ModelError
from streamsparse.kernels.divergence import measure_of
from streamsparse.network.replay import output_of
from streamsparse.network.running import evaluating

EXACT_CLASSES = 16
DRAWS = 4
_Outputs = dict[str, list[Tensor]]


def fisher_traces(
    model: nn.Module, layers: Sequence[str], images: Sequence[Tensor], *, seed: int = 0
) -> dict[str, float]:
    """Trace of the Fisher information about each layer's output, mean over the images, nats.

    The expectation over classes is exact for up to EXACT_CLASSES of them, a backward pass for each; for more, DRAWS
    classes are drawn for each image.

    Args:
        model: images to logits (images, classes); left as it is.
        layers: dotted paths of modules that return one tensor.
        images: batches on the model's device.
        seed: of the draws.

    Raises:
        ModelError: outputs that are not class logits.
    """
    traces = dict.fromkeys(layers, 0.0)
    generator = torch.Generator().manual_seed(seed)
    for batch in images:
        with evaluating(model), torch.enable_grad(), _watching(model, layers) as outputs:
            log_p = _log_probabilities(model, batch)
            for number, (labels, weights) in enumerate(terms := _terms(log_p.detach(), generator)):
                chosen = log_p.gather(1, labels[:, None]).sum()  # images do not see each other in evaluation
                _add(traces, chosen, outputs, weights, retain=number + 1 < len(terms))
    count = sum(len(batch) for batch in images)
    return {layer: trace / count for layer, trace in traces.items()}


def _add(traces: dict[str, float], chosen: Tensor, outputs: _Outputs, weights: Tensor, retain: bool) -> None:
    """Add Σ over images of weight · ‖g‖² to every layer's trace."""
    called = [(layer, output) for layer, found in outputs.items() for output in found]
    tensors = [output for _, output in called]
    gradients = torch.autograd.grad(chosen, tensors, retain_graph=retain, allow_unused=True)
    for (layer, _), gradient in zip(called, gradients, strict=True):
        if gradient is not None:
            squares = gradient.double().square().flatten(1).sum(1)
            traces[layer] += float((squares * weights).sum())


@contextmanager
def _watching(model: nn.Module, layers: Sequence[str]) -> Iterator[_Outputs]:
    """Collect the layers' outputs as points to differentiate at."""
    outputs: _Outputs = {layer: [] for layer in layers}

    def watch(layer: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        outputs[layer].append(output)
        return output.clone()  # an activation after it may work in place

    hooks = [model.get_submodule(layer).register_forward_hook(partial(watch, layer)) for layer in layers]
    try:
        yield outputs
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


def _terms(log_p: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """(label, weight) of every image, (images,) each, whose weighted sum is the expectation over classes."""
    probabilities = log_p.double().exp()
    images, classes = probabilities.shape
    if classes <= EXACT_CLASSES:
        labels = [torch.full((images,), c, dtype=torch.int64, device=log_p.device) for c in range(classes)]
        return [(label, probabilities[:, c]) for c, label in enumerate(labels)]
    drawn = torch.multinomial(probabilities.cpu(), DRAWS, replacement=True, generator=generator).to(log_p.device)
    share = torch.full((images,), 1 / DRAWS, dtype=torch.float64, device=log_p.device)
    return [(drawn[:, draw], share) for draw in range(DRAWS)]
