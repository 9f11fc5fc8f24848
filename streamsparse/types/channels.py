"""Channels, the groups that they form, and the layers that see them.

A *channel group* is a set of channels that must be kept or removed together. Its *positions* are the units of
choice. A *producer* makes the channels, *pass-through* parameters (normalisations, depthwise filters, raw
parameters) carry them one to one, a *consumer* (convolution or linear layer) mixes them: each consumer is one
linear regression whose columns are (input channel, tap) pairs, channel-major as in `weight.flatten(1)`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
