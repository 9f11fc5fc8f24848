"""The model as a graph of operations, by `torch.export`: values are fake, nothing is computed or changed.

The model is exported in evaluation mode. If that leaves parameters unused (auxiliary classifiers), it is exported
in training mode too, so that what only training executes is cut along with the rest.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from streamsparse import events
from streamsparse.errors import ModelError
from streamsparse.network.running import quietly

_LIBRARY = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Graph:
    """One exported graph.

    Attributes:
        nodes: in order of execution.
        state: state_dict key of the parameter or buffer that a placeholder stands for, by node name.
        outputs: the nodes whose values the model returns.
        training: exported in training mode.
    """

    nodes: tuple[fx.Node, ...]
    state: dict[str, str]
    outputs: tuple[fx.Node, ...]
    training: bool


def export_graphs(
    model: nn.Module, inputs: tuple[Tensor, ...], on_event: events.OnEvent = events.ignore
) -> list[Graph]:
    """The graph in evaluation mode and, where that leaves parameters unused, the one in training mode.

    A model that cannot be followed in training mode is taken as in evaluation mode, with a notice.

    Raises:
        ModelError: torch.export cannot follow the model in evaluation mode; says why and where.
    """
    twin = shared_copy(model)
    graphs = [_export(twin.eval(), inputs, training=False)]
    used = {name for graph in graphs for name in _used_state(graph)}
    if any(name not in used for name, _ in twin.named_parameters()):
        batch = tuple(_two_images(value) for value in inputs)
        try:
            graphs.append(_export(twin.train(), batch, training=True))
        except ModelError as error:
            on_event(events.Notice("groups", f"Parts that only training executes are left whole. {error}"))
    return graphs


def shared_copy(model: nn.Module, own: Iterable[Tensor] = ()) -> nn.Module:
    """A copy with its own modules, whose mode and hooks are free to change.

    It shares its parameters and buffers with the model, but for those in `own`, of which it gets copies.
    """
    copied = {id(tensor) for tensor in own}
    kept = {id(t): t for t in [*model.parameters(), *model.buffers()] if id(t) not in copied}
    twin: nn.Module = copy.deepcopy(model, dict(kept))
    return twin


def module_path(node: fx.Node) -> str:
    """Dotted path of the module whose forward executes the node ("" for the model itself)."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return path.split("@")[0]  # the second call of a module is called path@1


def operation(node: fx.Node) -> str:
    """Name of the node's operation, for example aten.cat.default."""
    return str(node.target)


def source_line(node: fx.Node) -> str | None:
    """File, line and text of the innermost line of the model's own source that calls the node."""
    frames = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    calls = [
        (frame, frames[i + 1] if i + 1 < len(frames) else "")
        for i, frame in enumerate(frames)
        if frame.startswith("File ")
    ]
    own = [call for call in calls if _LIBRARY not in call[0]] or calls
    if not own:
        return None
    place, text = own[-1]
    file, line = place.split(", ")[:2]
    return f"{file.removeprefix('File ').strip(chr(34))}:{line.removeprefix('line ')}: {text}"


def _export(model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> Graph:
    try:
        with quietly("torch"):
            program = torch.export.export(model, inputs, strict=False)
    except Exception as error:  # torch.export raises errors of every kind
        raise ModelError(
            f"torch.export cannot follow the model{' in training mode' if training else ''}.",
            expected="a forward pass whose control flow does not depend on the values of tensors",
            got=f"{type(error).__name__}: {first_line(error)}",
            where=failing_line(error),
            remedy="Replace the branch on tensor values, or prune the part of the model before or after it.",
        ) from error
    return _graph(program, training)


def _graph(program: ExportedProgram, training: bool) -> Graph:
    signature = program.graph_signature
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = tuple(program.graph.nodes)
    (last,) = [node for node in nodes if node.op == "output"]
    return Graph(nodes, state, tuple(last.all_input_nodes), training)


def _used_state(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op == "placeholder" and node.users and node.name in graph.state:
            yield graph.state[node.name]


def _two_images(value: Tensor) -> Tensor:
    """At least two images, which BatchNorm needs in training mode."""
    return value if value.dim() == 0 or value.size(0) > 1 else torch.cat([value, value])


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), "")


def failing_line(error: BaseException) -> str | None:
    """The innermost line outside of torch in the error's traceback, that is, in the model's source."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _LIBRARY not in f.filename]
    own = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else None
