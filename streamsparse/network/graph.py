"""Find the channel groups of a model.

export.py        the model as a graph of operations                     torch.export, nothing is computed
rules*.py        what each operation does with the channels             labels in, labels out
propagation.py   the loop over the graph, bindings of parameters
labels.py        atoms, united or frozen
assembly.py      classes of atoms -> groups, index maps
trial.py         float64: masked equals pruned, or the group is frozen
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamsparse import events
from streamsparse.errors import ModelError
from streamsparse.network.assembly import assemble, tied_names
from streamsparse.network.export import Graph, export_graphs
from streamsparse.network.geometry import layer_geometry
from streamsparse.network.propagation import Propagation, propagate
from streamsparse.network.rules import rule_for
from streamsparse.network.trial import try_groups
from streamsparse.types import ChannelGraph


def find_groups(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    *,
    trial: bool = True,
    on_event: events.OnEvent = events.ignore,
) -> ChannelGraph:
    """Channels that can be removed together, what is frozen and why, and the layers that see them.

    The model is followed as in evaluation mode; it is left as it is (mode, weights, hooks). One image of
    `example_inputs` is used; its values do not matter.

    Args:
        model: any module that torch.export can follow.
        example_inputs: positional inputs of the model, batch first.
        trial: check every group in float64 before it is offered: `ChannelGroup.trial_error` is the largest
            difference between masked and pruned outputs over the largest output; a group beyond 1e-9 is frozen.
        on_event: told of the trial's progress.

    Raises:
        ModelError: the model cannot be exported, or does not run in float64.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    _check_inputs(inputs)
    inputs = tuple(_one_image(value, inputs) for value in inputs)
    found = _follow(model, export_graphs(model, inputs, on_event))
    return try_groups(model, found, inputs, on_event) if trial else found


def _follow(model: nn.Module, graphs: list[Graph]) -> ChannelGraph:
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict(keep_vars=True).items()}
    state = Propagation(shapes)
    for graph in graphs:
        propagate(graph, state, rule_for)
    groups, frozen = assemble(state, tied_names(model), model)
    return ChannelGraph(groups, frozen, layer_geometry(graphs[0], model))


def _check_inputs(inputs: tuple[object, ...]) -> None:
    if not inputs or not all(isinstance(value, torch.Tensor) and value.dim() > 0 for value in inputs):
        raise ModelError(
            "The example inputs are not batches of images.",
            expected="one tensor, or a tuple of tensors, batch first",
            got=", ".join(type(value).__name__ for value in inputs) or "nothing",
            remedy="Pass what the model is called with, for example torch.zeros(1, 3, 224, 224).",
        )


def _one_image(value: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """The first image, on whose shape alone everything depends."""
    return value[:1].detach() if value.size(0) == inputs[0].size(0) else value.detach()
