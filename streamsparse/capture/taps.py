"""Forward hooks that read the inputs and outputs of the layers that are to be solved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from streamsparse.errors import HalfOverflowError, ModelError, NonFiniteError

Values = dict[tuple[str, int, str], Tensor]
"""(layer, call, side) -> (images, *shape)"""

_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class Taps:
    """Runs images through a model and returns its layers' activations."""

    def __init__(self, layers: Mapping[str, int], model: nn.Module):
        """
        Args:
            layers: module path -> calls per forward pass.
            model: in evaluation mode.
        """
        self._layers = dict(layers)
        self._model = model

    def __call__(self, images: Tensor, dtype: str) -> Values:
        """Activations of one batch on the CPU, in the given dtype, finite; copies, never views.

        Raises:
            NonFiniteError: NaN or infinity among them, with the layer.
            HalfOverflowError: values beyond float16.
            ModelError: a layer was called another number of times than announced.
        """
        values: Values = {}
        with torch.inference_mode(), _recording(self._model, self._layers, dtype, values):
            self._model(images)
        for layer, calls in self._layers.items():
            if (layer, calls - 1, "output") not in values or (layer, calls, "output") in values:
                raise wrong_calls(layer, calls, sum((layer, call, "output") in values for call in range(calls + 8)))
        return values


def wrong_calls(layer: str, expected: int, got: int) -> ModelError:
    """The error for a layer that one batch called more or less often than the example image did."""
    return ModelError(
        f"Layer '{layer}' was called another number of times than on the example image.",
        expected=expected,
        got=got,
        where=layer,
        remedy="models whose control flow depends on the data cannot be captured",
    )


def count_calls(model: nn.Module, layers: list[str], example: Tensor) -> dict[str, int]:
    """How often one forward pass calls each layer; layers that hooks never see are left out."""
    calls = dict.fromkeys(layers, 0)

    def count(layer: str) -> Any:
        def hook(*_: object) -> None:
            calls[layer] += 1

        return hook

    with torch.inference_mode(), hooked(model, {layer: count(layer) for layer in layers}):
        model(example)
    return {layer: number for layer, number in calls.items() if number}


class _Enough(BaseException):
    """All planned calls were seen; not an `Exception`, which a model's own code might catch."""


def run_to_last(
    model: nn.Module,
    layers: Mapping[str, int],
    batch: Tensor,
    at_call: Callable[[str, int, Tensor, Tensor], None],
) -> None:
    """Run the model up to the last planned call; `at_call(layer, call, inputs, output)` behind each of them.

    What lies behind does not matter: passes for one layer each cost half of whole ones in the mean.

    Args:
        layers: module path -> calls per forward pass.

    Raises:
        ModelError: a layer was called another number of times.
    """
    seen = dict.fromkeys(layers, 0)
    planned = sum(layers.values())

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            at_call(name, seen[name], args[0] if args else kwargs["input"], output)
            seen[name] += 1
            if sum(seen.values()) == planned:
                raise _Enough

        return hook

    with suppress(_Enough), hooked(model, {name: hook_of(name) for name in layers}):
        model(batch)
    for name, calls in layers.items():
        if seen[name] != calls:
            raise wrong_calls(name, calls, seen[name])


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Any]) -> Iterator[None]:
    """Call `hooks[layer](module, args, kwargs, output)` after every call of the layer, within the `with` block."""
    handles = [
        model.get_submodule(layer).register_forward_hook(hook, with_kwargs=True) for layer, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recording(model: nn.Module, layers: Mapping[str, int], dtype: str, values: Values) -> Iterator[None]:
    def hook_of(layer: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            call = sum((layer, number, "input") in values for number in range(layers[layer] + 1))
            values[layer, call, "input"] = _stored(args[0] if args else kwargs["input"], dtype, layer, "input")
            values[layer, call, "output"] = _stored(output, dtype, layer, "output")

        return hook

    with hooked(model, {layer: hook_of(layer) for layer in layers}):
        yield


def _stored(tensor: Tensor, dtype: str, layer: str, side: str) -> Tensor:
    """A finite copy on the CPU; a copy even where dtype and device already fit, for in-place operations follow."""
    stored = tensor.detach().to(_DTYPES[dtype], copy=True)
    if not bool(torch.isfinite(stored).all()):
        where = f"{side} of layer '{layer}'"
        if bool(torch.isfinite(tensor).all()):
            raise HalfOverflowError(
                f"The {where} does not fit into float16.",
                expected="magnitudes up to 65,504",
                got=f"{tensor.abs().max().item():.6g}",
                where=where,
                remedy="capture with --dtype float32",
            )
        raise NonFiniteError(
            f"The {where} is not finite.",
            expected="finite activations",
            got="NaN or infinity",
            where=where,
            remedy="check the model's weights and the preprocessing of the images",
        )
    return stored.cpu()
