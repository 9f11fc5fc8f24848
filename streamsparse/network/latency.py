"""How long a model takes: median wall time per batch size."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from streamsparse.errors import UsageError
from streamsparse.network.running import ExampleInputs, evaluating, one_image, run


def latency(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    warm_up: int = 3,
    repeats: int = 20,
) -> dict[int, float]:
    """Median seconds of one forward pass, by batch size, on the device of the inputs.

    The first example image is repeated to each batch size. On CUDA the device is synchronised before each
    reading of the clock. The thread count is torch's own and belongs beside every figure.

    Args:
        example_inputs: (batch, ...), one tensor or one per argument of `forward`.
        warm_up: forward passes before the clock starts.
        repeats: timed forward passes.

    Raises:
        UsageError: a batch size or `repeats` below 1, `warm_up` below 0.
        ModelError: the model does not run on the inputs.
    """
    if min((*batch_sizes, repeats, warm_up + 1), default=0) < 1:
        raise UsageError(
            "Latency needs something to measure.",
            expected="batch sizes and repeats of at least 1, warm-up of at least 0",
            got=f"batch sizes {list(batch_sizes)}, repeats {repeats}, warm-up {warm_up}",
            remedy="Give positive numbers, for example batch_sizes=(1, 32), warm_up=3, repeats=20.",
        )
    image = one_image(example_inputs)
    with evaluating(model):
        return {size: _median_seconds(model, _repeated(image, size), warm_up, repeats) for size in batch_sizes}


def least_seconds(
    model: nn.Module, image: Tensor, batch_images: int, *, warm_up: int = 2, repeats: int = 7
) -> float:
    """Least seconds of a few forward passes: what the device takes when nothing else disturbs it.

    Args:
        image: (1, ...), repeated to the batch; on its device.
    """
    inputs = _repeated((image,), batch_images)
    with evaluating(model):
        for _ in range(warm_up):
            run(model, inputs)
        return min(_seconds(model, inputs) for _ in range(repeats))


def _repeated(image: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    return tuple(tensor.repeat(size, *([1] * (tensor.dim() - 1))) for tensor in image)


def _median_seconds(model: nn.Module, inputs: tuple[Tensor, ...], warm_up: int, repeats: int) -> float:
    for _ in range(warm_up):
        run(model, inputs)
    return median(_seconds(model, inputs) for _ in range(repeats))


def _seconds(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    _synchronise(inputs)
    started = perf_counter()
    run(model, inputs)
    _synchronise(inputs)
    return perf_counter() - started


def _synchronise(inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)
