"""What a model costs: measured on a model, and as a function of the channels kept.

Convention: one MAC is one multiplication with its addition, two FLOPs. Convolutions, linear layers and matrix
products (attention included) count; biases, normalisations, activations and pooling do not, as in
`torch.utils.flop_counter`. ResNet-18 at 224 px has 1.814 GMAC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from streamsparse.errors import ModelError
from streamsparse.kernels.costs import CostModel
from streamsparse.network.resize import stored_tensors
from streamsparse.network.running import ExampleInputs, evaluating, one_image, run
from streamsparse.types import ChannelGraph, ChannelGroup, Costs

# Operands of a product that can be the weight, by operation; of a convolution only the second one can.
_OPERANDS = {"convolution": (1,), "mm": (1, 0), "addmm": (2, 1), "bmm": (1, 0), "baddbmm": (2, 1)}


def costs(model: nn.Module, example_inputs: ExampleInputs) -> Costs:
    """Measure a model by one forward pass of one image; the model is left as it was.

    Tied parameters count once. Bytes are those of parameters and persistent buffers, what a checkpoint stores.

    Args:
        example_inputs: (batch, ...), one tensor or one per argument of `forward`; the first image is used.

    Raises:
        ModelError: the model does not run on the inputs.
    """
    distinct = list(_distinct(model).values())
    counter = FlopCounterMode(display=False)
    inputs = one_image(example_inputs)
    with evaluating(model), _without_fused_attention(), counter:
        run(model, inputs)
    return Costs(
        parameters=sum(tensor.numel() for tensor in distinct if isinstance(tensor, nn.Parameter)),
        macs=counter.get_total_flops() // 2,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in distinct),
    )


def cost_model(model: nn.Module, graph: ChannelGraph, example_inputs: ExampleInputs) -> CostModel:
    """The costs of every architecture that `graph` allows, from one forward pass of the whole model.

    The figures are those that `costs` measures on the physically pruned model.

    Args:
        graph: the channel groups of this model.
        example_inputs: as for `costs`.

    Raises:
        ModelError: the model does not run on the inputs, or the graph belongs to another model.
    """
    distinct = _distinct(model)
    counter = _WeightCounter(model, distinct)
    inputs = one_image(example_inputs)
    with evaluating(model), _without_fused_attention(), counter.hooks(), counter:
        run(model, inputs)
    names = tuple(distinct)
    classes, untouched, entries = _dimensions(graph.groups, distinct, _canonical(model))
    return CostModel(
        groups=tuple(group.name for group in graph.groups),
        sizes=tuple(group.size for group in graph.groups),
        classes=classes,
        tensors=names,
        untouched=untouched,
        entries=entries,
        parameters_per_element=np.array([float(isinstance(distinct[name], nn.Parameter)) for name in names]),
        bytes_per_element=np.array([float(distinct[name].element_size()) for name in names]),
        macs_per_element=np.array([counter.macs[name] / max(distinct[name].numel(), 1) for name in names]),
        constant_macs=counter.constant_macs,
    )


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer once, under its first name."""
    first: dict[int, str] = {}
    own = stored_tensors(model)
    for name, tensor in own.items():
        first.setdefault(id(tensor), name)
    return {name: own[name] for name in first.values()}


def _canonical(model: nn.Module) -> dict[str, str]:
    """First name of the tensor behind every name."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in stored_tensors(model).items()}


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """nn.MultiheadAttention's fused inference kernel hides its products from every counter."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _WeightCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Attributes the MACs of every product to the parameter that is its weight.

    A weight is known by its storage; a weight computed from a parameter (weight standardisation) by its number
    of elements among the parameters of the module that runs.
    """

    def __init__(self, model: nn.Module, distinct: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = defaultdict(int)
        self.constant_macs = 0
        self._model = model
        self._names = {id(tensor): name for name, tensor in distinct.items()}
        self._storages: dict[int, list[str]] = defaultdict(list)
        for name, tensor in distinct.items():
            if tensor.numel():
                self._storages[tensor.untyped_storage()._cdata].append(name)
        self._tensors = distinct
        self._running: list[nn.Module] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow which module runs."""
        handles = []
        for module in self._model.modules():
            handles.append(module.register_forward_pre_hook(lambda m, _: self._running.append(m)))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, _module: nn.Module, _inputs: object, _outputs: object) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            macs = formula(*args, **(kwargs or {}), out_val=outputs) // 2
            name = self._weight(func._overloadpacket.__name__, args)
            if name is None:
                self.constant_macs += macs
            else:
                self.macs[name] += macs
        return outputs

    def _weight(self, operation: str, args: tuple[Any, ...]) -> str | None:
        operands = [args[position] for position in _OPERANDS.get(operation, ())]
        for operand in operands:
            names = self._storages.get(operand.untyped_storage()._cdata, [])
            offset = operand.storage_offset()
            exact = [name for name in names if self._tensors[name].storage_offset() == offset]
            if names:
                return (exact or names)[0]
        # an attention product may have as many elements as a weight by chance, and is a batched one
        return None if operation in ("bmm", "baddbmm") else self._computed(operands)

    def _computed(self, operands: Sequence[Tensor]) -> str | None:
        own = self._running[-1].parameters(recurse=True) if self._running else iter(())
        sizes = {parameter.numel(): self._names[id(parameter)] for parameter in own if parameter.dim() > 1}
        found = (sizes.get(operand.numel()) for operand in operands[:1])
        return next((name for name in found if name is not None), None)


def _dimensions(
    groups: Sequence[ChannelGroup], distinct: Mapping[str, Tensor], canonical: Mapping[str, str]
) -> tuple[tuple[tuple[int, ...], ...], np.ndarray, np.ndarray]:
    """Classes of positions, untouched entries (tensors, dims), entries per position (tensors, dims, classes)."""
    row_of = {name: row for row, name in enumerate(distinct)}
    dims = max((tensor.dim() for tensor in distinct.values()), default=1)
    untouched = np.ones((len(distinct), max(dims, 1)))
    for row, tensor in enumerate(distinct.values()):
        untouched[row, : tensor.dim()] = tensor.shape
    columns: list[np.ndarray] = []  # one (tensors, dims) table of entries per class
    classes = []
    for group in groups:
        cuts = _cuts(group, canonical)
        amounts = np.array([[len(entries) for entries in index] for _, _, index in cuts])  # (cuts, positions)
        kinds, kind_of = np.unique(amounts.reshape(len(cuts), group.size), axis=1, return_inverse=True)
        classes.append(tuple(len(columns) + int(kind) for kind in kind_of))
        places = [row_of[name] for name, _, _ in cuts], [dim for _, dim, _ in cuts]
        for kind in kinds.T:
            columns.append(np.zeros_like(untouched))
            np.add.at(columns[-1], places, kind)
        np.add.at(untouched, places, -amounts.sum(axis=1))
    if (untouched < 0).any():
        raise _foreign(f"more entries cut than {list(distinct)[int(np.argwhere(untouched < 0)[0][0])]} has")
    entries = np.stack(columns, axis=-1) if columns else np.zeros((*untouched.shape, 0))
    return tuple(classes), untouched, entries


def _cuts(group: ChannelGroup, canonical: Mapping[str, str]) -> list[tuple[str, int, tuple[tuple[int, ...], ...]]]:
    """The group's distinct cuts: a tied parameter is cut once."""
    unknown = [cut.tensor for cut in group.slices if cut.tensor not in canonical]
    if unknown:
        raise _foreign(f"group {group.name} cuts {unknown[0]}, which the model does not have")
    cuts = dict.fromkeys((canonical[cut.tensor], cut.dim, cut.index) for cut in group.slices)
    return list(cuts)


def _foreign(got: str) -> ModelError:
    return ModelError(
        "The channel graph does not belong to this model.",
        expected="the graph that find_groups gives for it",
        got=got,
        remedy="Find the groups of this very model again.",
    )
