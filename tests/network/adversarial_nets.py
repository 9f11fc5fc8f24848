"""Small nets with every kind of wiring that a channel can take, and what must be found in them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = torch.zeros(1, 3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)


class Net(nn.Module):
    """stem (3 -> 8), `body`, head: a linear layer on the pooled channels."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.head = nn.Linear(features, 5)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


class FlattenedConcat(Net):
    """Concatenation of flattened features: each half has its own index map."""

    def __init__(self) -> None:
        super().__init__(2 * 4 + 6 * 4)
        self.left, self.right = conv(8, 2), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        parts = [F.adaptive_avg_pool2d(branch(x), 2).flatten(1) for branch in (self.left, self.right)]
        return self.head(torch.cat(parts, 1))


class ConcatThenFlatten(FlattenedConcat):
    """The same columns by the other order of operations."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.adaptive_avg_pool2d(torch.cat([self.left(x), self.right(x)], 1), 2).flatten(1))


class RepeatedConcat(Net):
    """A tensor concatenated with itself: two columns per channel."""

    def __init__(self) -> None:
        super().__init__(16)

    def body(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class PixelShuffle(Net):
    """Four channels become one: they go together."""

    def __init__(self) -> None:
        super().__init__(4)
        self.wide = conv(8, 16)

    def body(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.wide(x), 2)


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation: every filter is normalised over its input channels."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.pow(2).mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, padding=1)


class WeightStandardisation(Net):
    """The filters of a standardised convolution may go, its input channels may not."""

    def __init__(self) -> None:
        super().__init__(6)
        self.standard = StandardisedConv2d(8, 6, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.standard(x)


class SpatialAttention(Net):
    """Mean and maximum over the channels: removing one changes both."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = conv(2, 1), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.last(x * torch.sigmoid(self.attention(summary)))


class LiteralView(nn.Module):
    """`view(-1, 128)` holds for the original width only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = conv(3, 8), nn.Linear(128, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.stem(x)), 2).reshape(-1, 128)
        return self.head(F.relu(self.hidden(x)))


class DataDependent(Net):
    """Control flow that depends on values cannot be followed."""

    def body(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return x * 2


class ShapeDependent(Net):
    """Control flow that depends on the image's size can."""

    def body(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[2] > 4 else x


class ChannelBuffer(Net):
    """A buffer and a parameter of one entry per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(0.5, 1.5, 8).view(8, 1, 1))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


class HiddenBuffer(Net):
    """A buffer that is not in the state_dict cannot be cut when a checkpoint is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(0.5, 1.5, 8).view(8, 1, 1), persistent=False)
        self.last = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x - self.mean)


class SharedModule(Net):
    """A module called twice: its input and output channels are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.shared(F.relu(self.shared(x)))


class PaddedShortcut(Net):
    """Option A of the ResNet paper: the shortcut is strided and padded with zero channels."""

    def __init__(self) -> None:
        super().__init__(16)
        self.down, self.last = nn.Conv2d(8, 16, 3, stride=2, padding=1), conv(16, 16)

    def body(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))


class NhwcFlatten(nn.Module):
    """Channels last before the flatten: the columns of a channel are strided."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.avg_pool2d(self.stem(x), 2).permute(0, 2, 3, 1).flatten(1))


class ChannelShuffle(Net):
    """A shuffle of two groups between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.middle, self.last = conv(8, 8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        x = self.middle(x)
        images, channels, height, width = x.shape
        x = x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(images, channels, height, width)
        return self.last(x)


class SplitTrunk(Net):
    """Two halves of a tensor go different ways and come together again."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = conv(4, 6), conv(10, 8)

    def body(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return self.last(torch.cat([left, F.relu(self.branch(right))], 1))


class LiteralSlice(Net):
    """A slice with a literal bound that is not one of equal parts."""

    def __init__(self) -> None:
        super().__init__(3)

    def body(self, x: Tensor) -> Tensor:
        return x[:, 2:5]


class LiteralHalf(Net):
    """A slice with a literal bound that looks like half: only the trial can tell."""

    def __init__(self) -> None:
        super().__init__(4)

    def body(self, x: Tensor) -> Tensor:
        return x[:, :4]


class RolledChannels(Net):
    """A roll along the channels by a literal amount."""

    def __init__(self) -> None:
        super().__init__(4)
        self.last = conv(8, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x.roll(3, 1))


class GroupNormalised(Net):
    """GroupNorm of four groups: pairs of channels go together."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Normalised(Net):
    """InstanceNorm, BatchNorm and PReLU per channel, and one PReLU for all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.InstanceNorm2d(8, affine=True),
            nn.PReLU(8),
            nn.BatchNorm2d(8),
            nn.PReLU(),
            nn.Dropout2d(inplace=True),
        )

    def body(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LayerNormalised(Net):
    """LayerNorm over the channels: exact but for its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def body(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupedAligned(Net):
    """A grouped convolution between two others (ResNeXt): whole groups go."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = conv(8, 16, groups=4)
        self.last = conv(16, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.grouped(x)))


class GroupedUnaligned(Net):
    """Two grouped convolutions of other group sizes: coarser positions."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.fours = conv(8, 8, groups=4), conv(8, 8, groups=2)

    def body(self, x: Tensor) -> Tensor:
        return self.fours(self.pairs(x))


class Depthwise(Net):
    """A depthwise convolution that makes two channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.point = conv(8, 16, groups=8, bias=False), conv(16, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.point(self.depthwise(x))


class Functional(Net):
    """A convolution and a product with raw parameters."""

    def __init__(self) -> None:
        super().__init__(6)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) / math.sqrt(72))
        self.matrix = nn.Parameter(torch.randn(8, 6) / math.sqrt(8))

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, padding=1))
        return (x.permute(0, 2, 3, 1) @ self.matrix).permute(0, 3, 1, 2)


class FrozenParameters(Net):
    """Parameters that are not trained are cut like others and stay untrained."""

    def __init__(self) -> None:
        super().__init__()
        self.last = conv(8, 8)
        self.stem.requires_grad_(requires_grad=False)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x)


class SqueezeExcitation(Net):
    """A gate per channel, by a linear layer on the pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 3), nn.Linear(3, 8)

    def body(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Residual(Net):
    """An identity shortcut ties the two ends of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(8, 12), conv(12, 8)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class SoftmaxOverChannels(Net):
    """A softmax over the channels mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x.softmax(1))


class CoordinatePlane(Net):
    """A channel of constants is concatenated (CoordConv): no one makes it, nothing is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = conv(9, 8)

    def body(self, x: Tensor) -> Tensor:
        plane = torch.linspace(0, 1, x.shape[3], dtype=x.dtype).expand(x.shape[0], 1, x.shape[2], x.shape[3])
        return self.last(torch.cat([plane, x], 1))


class WrittenSlice(Net):
    """An in-place write into a part of the channels (a temporal shift)."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.last = conv(8, 3), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape)
        y[:, :3] = self.other(x)
        return self.last(x + y)


class Transposed(Net):
    """Transposed convolutions, plain and depthwise."""

    def __init__(self) -> None:
        super().__init__(6)
        self.up, self.depthwise = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 6, 2, 2, groups=6)

    def body(self, x: Tensor) -> Tensor:
        return self.depthwise(F.relu(self.up(x)))


class Tied(Net):
    """Two modules that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(8, 8), conv(8, 8)
        self.second.weight = self.first.weight

    def body(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class Auxiliary(Net):
    """A second head that only training executes (GoogLeNet): cut along, or training breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x)).mean((2, 3))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


class Dormant(Net):
    """A part that only training executes, with control flow that cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.dormant = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).mean((2, 3))
        if self.training and x.sum() > 0:
            return self.head(x) + self.dormant(x)
        return self.head(x)
