"""State of the propagation of channel labels through a graph, and the loop that applies the rules.

A rule takes the state and a node and returns the labels of the node's value, or None if it cannot follow: then
every channel that reaches the node is frozen, with the operation and the line of the model's source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from streamsparse.network.export import Graph, first_line, module_path, operation, source_line
from streamsparse.network.labels import NO_CHANNEL, Atoms, AtomTable, Cause, Labels
from streamsparse.types import Role

_UNKNOWN = "by an operation that channels are not followed through"

_RULE_ERRORS = (AssertionError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)

Value = Labels | list["Labels | None"]
Slot = tuple[str, int]


@dataclass
class Bound:
    """One dimension of a parameter or buffer, entry by entry bound to atoms."""

    atoms: Atoms
    role: Role


@dataclass(frozen=True)
class LiteralSize:
    """A number of channels that an operation was given: perhaps an attribute of the module that executes it."""

    module: str
    size: int
    atoms: Atoms


@dataclass
class Propagation:
    """What is known so far; shared by all graphs of one model.

    Attributes:
        shapes: of every parameter and persistent buffer, by state_dict key.
        table: the atoms.
        bound: by (state_dict key, dimension), in order of execution.
        whole: state that some operation uses whole, so that it cannot be cut, and why.
        values: labels of the nodes of the current graph.
        state: state_dict key by node name, in the current graph.
        node: the node that is being followed.
        sizes: numbers of channels that operations were given.
    """

    shapes: Mapping[str, tuple[int, ...]]
    table: AtomTable = field(default_factory=AtomTable)
    bound: dict[Slot, Bound] = field(default_factory=dict)
    whole: dict[str, Cause] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    node: fx.Node | None = None
    sizes: list[LiteralSize] = field(default_factory=list)

    def cause(self, reason: str) -> Cause:
        """A cause at the current node."""
        assert self.node is not None
        return Cause(reason, operation(self.node), source_line(self.node))

    def freeze(self, labels: Labels, reason: str) -> None:
        """Freeze the channels of `labels` because of the current node."""
        if labels.atoms is not None:
            self.table.freeze(labels.atoms, self.cause(reason))

    def parameter(self, node: object) -> str | None:
        """The state_dict key that the node stands for, None if it is not a parameter or buffer."""
        return self.state.get(node.name) if isinstance(node, fx.Node) else None

    def labels(self, node: object) -> Labels:
        """Labels of a tensor-valued node; a parameter is labelled by its outermost dimension."""
        assert isinstance(node, fx.Node)
        if self.parameter(node) is not None:
            return self.label_parameter(node)
        value = self.values.get(node.name)
        return value if isinstance(value, Labels) else Labels(shape_of(node))

    def label_parameter(self, node: fx.Node) -> Labels:
        """Labels of a parameter that is used like an activation (class token, standardised weight).

        Its first dimension of more than one entry is its channel dimension: the filters of a weight.
        """
        key, shape = self.state[node.name], shape_of(node)
        dims = [dim for dim, size in enumerate(shape) if size > 1]
        if not dims or key not in self.shapes:
            return Labels(shape)
        dim = dims[0] if shape[0] > 1 else dims[-1]
        if (key, dim) not in self.bound:
            self.bind(key, dim, self.table.create(shape[dim], producer_name(key)), Role.PASS_THROUGH)
        return Labels(shape, dim, self.bound[key, dim].atoms)

    def bind(self, key: str, dim: int, atoms: Atoms, role: Role) -> None:
        """Entry i of the parameter's dimension belongs to atoms[i]: it goes when the atom goes."""
        why = self.cause(f"tied to entries of {key} that no layer makes")
        if key not in self.shapes:
            self.table.freeze(atoms, self.cause(f"{key} is not in the state_dict, so it cannot be cut"))
        elif self.shapes[key][dim] != atoms.size:
            self.table.freeze(atoms, self.cause(f"{key} has another size along dimension {dim}"))
        elif (key, dim) in self.bound:
            self.table.unite(self.bound[key, dim].atoms, atoms, why)
        else:
            self.bound[key, dim] = Bound(atoms, role)

    def outputs_of(self, key: str, dim: int) -> Atoms:
        """Atoms of the channels that a weight makes along `dim`, the same at every call of its layer."""
        if (key, dim) not in self.bound:
            size = self.shapes[key][dim]
            self.bind(key, dim, self.table.create(size, producer_name(key)), Role.PRODUCER)
            if size == 1:
                self.table.freeze(self.bound[key, dim].atoms, self.cause("a single channel: nothing to choose"))
        slot = self.bound[key, dim]
        slot.role = Role.PRODUCER
        return slot.atoms

    def literal_size(self, size: int, atoms: Atoms) -> None:
        """The current node takes `size` entries, those of `atoms`: the number may be written in its module."""
        assert self.node is not None
        self.sizes.append(LiteralSize(module_path(self.node), size, atoms))


Rule = Callable[[Propagation, fx.Node], Value | None]


def producer_name(key: str) -> str:
    """Name of the layer that a weight makes: its module's path; the weight's own key where it is not `weight`."""
    owner, _, leaf = key.rpartition(".")
    return owner if leaf == "weight" and owner else key


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the node's tensor, () if it is not one tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def plain(node: fx.Node) -> Value:
    """Labels of a value that carries no channel."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [Labels(tuple(v.shape)) if isinstance(v, Tensor) else None for v in value]
    return Labels(shape_of(node))


def propagate(graph: Graph, state: Propagation, rule_for: Callable[[fx.Node], Rule | None]) -> None:
    """Follow the channels through one graph; everything learnt is left in `state`."""
    state.values, state.state = {}, graph.state
    for node in graph.nodes:
        state.node = node
        if node.op == "placeholder" and node.name not in graph.state:
            state.values[node.name] = Labels(shape_of(node))
        elif node.op == "call_function":
            state.values[node.name] = _follow(state, node, rule_for(node))
    for node in graph.outputs:
        for labels in _all_labels(state, node):
            table_cause = Cause("the model's output", "output", None)
            if labels.atoms is not None:
                state.table.freeze(labels.atoms, table_cause)
    state.values = {}


def _follow(state: Propagation, node: fx.Node, rule: Rule | None) -> Value:
    why = _UNKNOWN
    try:
        result = rule(state, node) if rule is not None else None
    except _RULE_ERRORS as error:  # an argument of a kind that the rule does not expect: as good as unknown
        result, why = None, f"{_UNKNOWN} ({type(error).__name__}: {first_line(error)})"
    if result is not None:
        return result
    for source in node.all_input_nodes:
        key = state.parameter(source)
        if key is not None:
            state.whole.setdefault(key, state.cause(f"{key} is used whole, {why}"))
        for labels in _all_labels(state, source):
            state.freeze(labels, f"used {why}")
    return plain(node)


def _all_labels(state: Propagation, node: fx.Node) -> list[Labels]:
    value = state.values.get(node.name)
    if isinstance(value, list):
        return [labels for labels in value if labels is not None]
    return [] if value is None else [value]


def is_free(atoms: Atoms) -> bool:
    """Whether any entry belongs to a channel."""
    return bool((atoms != NO_CHANNEL).any())
