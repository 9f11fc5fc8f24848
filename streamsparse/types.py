"""The nouns of the domain: frozen, validated once, understood by every package.

A *channel group* is a set of channels that must be kept or removed together. Its *positions* are the units of
choice. A *producer* makes the channels, *pass-through* parameters (normalisations, depthwise filters, raw
parameters) carry them one to one, a *consumer* (convolution or linear layer) mixes them: each consumer is one
linear regression whose columns are (input channel, tap) pairs, channel-major as in `weight.flatten(1)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from math import prod
from typing import Any


class Role(StrEnum):
    """What a tensor does with the channels of a group."""

    PRODUCER = "producer"
    PASS_THROUGH = "pass-through"
    CONSUMER = "consumer"


@dataclass(frozen=True)
class TensorSlice:
    """The entries of one parameter or buffer that belong to each position of a group.

    Attributes:
        tensor: key in the model's `state_dict()`.
        dim: the dimension of the tensor that is cut.
        index: `index[p]` holds the entries along `dim` that go when position p goes.
        role: what the tensor does with them.
    """

    tensor: str
    dim: int
    index: tuple[tuple[int, ...], ...]
    role: Role


@dataclass(frozen=True)
class Consumer:
    """A layer that mixes the channels of a group: one linear regression.

    Attributes:
        layer: dotted path of the module that owns the weight.
        inputs: `inputs[p]` holds the input channels (features) that carry position p: one for a plain convolution,
            height·width for a Linear after a flatten, several for a tensor that is concatenated with itself.
    """

    layer: str
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SizeAttribute:
    """A number in a module that must shrink with a group (the width by which a Res2Net block splits).

    Attributes:
        module: dotted path.
        name: of the attribute, an integer.
        per_position: by how much it falls when one position goes.
    """

    module: str
    name: str
    per_position: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept or removed together.

    Attributes:
        name: path of the first producer, unique in the graph.
        size: number of positions.
        slices: every parameter and buffer that must be cut, producers first.
        consumers: the regressions that see these channels, in order of execution.
        approximate: why removal is not exactly the same as masking (LayerNorm over the group), or None.
        trial_error: relative error of the float64 trial (masked against pruned), or None before the trial.
        attributes: numbers that the model's code uses as sizes, beside those that follow from tensor shapes.
    """

    name: str
    size: int
    slices: tuple[TensorSlice, ...]
    consumers: tuple[Consumer, ...]
    approximate: str | None = None
    trial_error: float | None = None
    attributes: tuple[SizeAttribute, ...] = ()


@dataclass(frozen=True)
class FrozenChannels:
    """Channels that are left alone, and why.

    Attributes:
        layer: the producer of the channels (or the parameter that carries them); channels: how many.
        reason: one sentence.
        operation: that could not be followed, as exported; source: file and line that call it, if known.
    """

    layer: str
    channels: int
    reason: str
    operation: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class LayerGeometry:
    """A convolution or linear layer as a linear regression on patches.

    Attributes:
        layer: dotted module path; kind: "conv1d", "conv2d" or "linear".
        kernel, stride, dilation: one entry per spatial dimension, () for a linear layer.
        padding: (before, after) per spatial dimension; padding_mode: "zeros", "reflect", "replicate" or "circular".
        groups: of a grouped convolution; bias: whether the layer has one.
        input_shape, output_shape: of one image, without the batch dimension.
    """

    layer: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    bias: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Regression columns per input channel."""
        return prod(self.kernel)

    @property
    def columns(self) -> int:
        """Regression columns per convolution group, `weight.flatten(1).shape[1]`."""
        return self.in_channels // self.groups * self.taps

    @property
    def patches_per_image(self) -> int:
        """Rows of the regression that one image contributes."""
        return prod(self.output_shape[:-1] if self.kind == "linear" else self.output_shape[1:])


def geometry_from_json(value: dict[str, Any]) -> LayerGeometry:
    """The inverse of `dataclasses.asdict`; TypeError or KeyError if fields are missing."""
    fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return LayerGeometry(**{**fields, "padding": tuple((before, after) for before, after in value["padding"])})


@dataclass(frozen=True)
class ChannelGraph:
    """What can be removed from a model, what cannot, and the layers that see it.

    Attributes:
        groups: in order of execution of their producers; frozen: channels that are left alone.
        layers: geometry of every convolution and linear layer, by module path, in order of execution.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenChannels, ...]
    layers: dict[str, LayerGeometry]

    def group(self, name: str) -> ChannelGroup:
        """The group of this name; KeyError if there is none."""
        return {group.name: group for group in self.groups}[name]


@dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
        parameters: number of trainable and frozen parameters (buffers not counted).
        macs: multiply-accumulate operations of convolutions and matrix products for one image.
        bytes: of the parameters and buffers in their own dtype.
    """

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class PrunePlan:
    """The architecture that was chosen.

    Attributes:
        keep: sorted positions that stay, by group; sizes: positions that there were, by group.
        predicted_errors: held-out relative error of each group's consumers; methods: what found each support.
        costs: of the pruned network; original_costs: of the original; budget: as given, None for counts by hand.
        predicted_losses: of the network with one group cut so far, by group; the pruned network's is near the sum.
        loss_kind: "divergence" (nats per image), "squared difference" (of outputs), or "error": held-out errors.
        predicted_seconds: of a forward pass, for a budget of latency.
    """

    keep: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    predicted_errors: dict[str, float]
    methods: dict[str, str]
    costs: Costs
    original_costs: Costs
    budget: str | None
    predicted_losses: dict[str, float] = field(default_factory=dict)
    loss_kind: str = "error"
    predicted_seconds: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Positions kept, by group."""
        return {group: len(positions) for group, positions in self.keep.items()}

    @property
    def sparsity(self) -> float:
        """Fraction of the original's parameters that is removed."""
        return 1 - self.costs.parameters / self.original_costs.parameters

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PrunePlan:
        """The inverse of `to_json`."""
        costs, original = Costs(**value["costs"]), Costs(**value["original_costs"])
        keep = {group: tuple(positions) for group, positions in value["keep"].items()}
        return cls(**{**value, "keep": keep, "costs": costs, "original_costs": original})


@dataclass(frozen=True)
class LayerError:
    """Predicted error of a layer's re-estimated weights: squared residual over the responses' power.

    Attributes:
        layer: module path.
        training_error: on all folds; held_out_error: on each fold, fitted on the others, mean.
        ridge: that was chosen, relative to each channel's mean diagonal.
    """

    layer: str
    training_error: float
    held_out_error: float
    ridge: float


@dataclass(frozen=True)
class Solution:
    """What was decided.

    Attributes:
        plan: counts and supports.
        layers: errors of the re-estimated layers, on inputs that the mode says: "independent" (of the original) or
            "sequential" (of the pruned layers before).
        recalibrated: keys of the running statistics that were estimated anew behind the weights; () for none.
    """

    plan: PrunePlan
    layers: tuple[LayerError, ...]
    mode: str
    recalibrated: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear layer, before and after.

    Attributes:
        layer: module path.
        inputs, outputs: channels (features) of the original; inputs_kept, outputs_kept: those that stay.
        held_out_error: predicted relative error of its re-estimated output; None where nothing was re-estimated.
        costs, original_costs: of the layer's own tensors.
    """

    layer: str
    inputs: int
    inputs_kept: int
    outputs: int
    outputs_kept: int
    held_out_error: float | None
    costs: Costs
    original_costs: Costs


@dataclass(frozen=True)
class Sensitivity:
    """What cutting one group alone to each of `counts` positions (ascending) does, its consumers re-estimated.

    `losses`: mean Kullback-Leibler divergence of the class probabilities from the original's, nats per image; of
    outputs that are not class logits, their mean squared difference over their variance.
    """

    group: str
    counts: tuple[int, ...]
    losses: tuple[float, ...]
