"""Sufficient statistics of one layer's regression: empty, update, merge, finalize.

`Sums` are raw and additive, so chunks, folds, shards and sites merge by addition in any order. Everything is
summed in float64; products are formed in float64 too unless `product_dtype` says otherwise, so any chunking and
any merge order agree to a relative 1e-12. `moments` centres them in float64: with means of m standard
deviations the centred second moments lose a factor m² of the 1e-16 relative precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from streamsparse.errors import NonFiniteError, StatisticsError
from streamsparse.kernels.patches import patches, responses
from streamsparse.types import LayerGeometry

BLOCK_BYTES = 64 * 2**20
_ROUND_OFF = 1e-11


@dataclass(frozen=True, eq=False)
class Sums:
    """Raw sums over patches x and responses y of one layer, float64 throughout.

    Attributes:
        gram: Σ x xᵀ, (groups, columns, columns).
        cross: Σ x yᵀ, (groups, columns, outputs).
        sum_x: Σ x, (groups, columns).
        sum_y: Σ y, (groups, outputs).
        power: Σ ‖y‖² per group, (groups,).
        count: number of patches, (1,).
    """

    gram: Float64[Tensor, "groups columns columns"]
    cross: Float64[Tensor, "groups columns outputs"]
    sum_x: Float64[Tensor, "groups columns"]
    sum_y: Float64[Tensor, "groups outputs"]
    power: Float64[Tensor, " groups"]
    count: Float64[Tensor, " 1"]

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, not copied."""
        return {name: getattr(self, name) for name in FIELDS}


FIELDS = ("gram", "cross", "sum_x", "sum_y", "power", "count")


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments about a point, divided by the number of patches; numpy float64.

    Attributes:
        gram: (groups, columns, columns).
        cross: (groups, columns, outputs).
        power: tr(YᵀY)/T per group, (groups,).
        mean_x: the point in input space, (groups, columns); mean_y in output space, (groups, outputs).
        count: number of patches T.
    """

    gram: Float64[np.ndarray, "groups columns columns"]
    cross: Float64[np.ndarray, "groups columns outputs"]
    power: Float64[np.ndarray, " groups"]
    mean_x: Float64[np.ndarray, "groups columns"]
    mean_y: Float64[np.ndarray, "groups outputs"]
    count: float


def field_shapes(geometry: LayerGeometry) -> dict[str, tuple[int, ...]]:
    """Shape of every field of the layer's `Sums`."""
    groups, columns, outputs = geometry.groups, geometry.columns, geometry.out_channels // geometry.groups
    return {
        "gram": (groups, columns, columns),
        "cross": (groups, columns, outputs),
        "sum_x": (groups, columns),
        "sum_y": (groups, outputs),
        "power": (groups,),
        "count": (1,),
    }


def sums_bytes(geometry: LayerGeometry) -> int:
    """Bytes that one `Sums` of the layer occupies."""
    return sum(8 * int(np.prod(shape)) for shape in field_shapes(geometry).values())


def empty(geometry: LayerGeometry, device: torch.device | str = "cpu") -> Sums:
    """The sums over no patches."""
    shapes = field_shapes(geometry)
    return Sums(**{name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()})


def update(
    sums: Sums,
    inputs: Tensor,
    outputs: Tensor,
    geometry: LayerGeometry,
    *,
    product_dtype: torch.dtype = torch.float64,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add a batch of images to `sums`, in place, in blocks of at most about `block_bytes` of patches.

    Args:
        sums: changed in place.
        inputs: the layer's input, (images, *geometry.input_shape), any floating dtype.
        outputs: the layer's output, (images, *geometry.output_shape).
        geometry: of the layer.
        product_dtype: of the matrix products inside one block; their sums are float64.
        block_bytes: bound on the patches held at once (at least one image).

    Raises:
        NonFiniteError: the batch holds NaN or infinity; `sums` is then worthless.
        StatisticsError: shapes that do not fit.
    """
    if inputs.shape[0] != outputs.shape[0]:
        raise StatisticsError(
            f"Layer '{geometry.layer}' has another number of input images than output images.",
            expected=inputs.shape[0],
            got=outputs.shape[0],
            where=geometry.layer,
        )
    bytes_per_image = geometry.patches_per_image * geometry.columns * geometry.groups * product_dtype.itemsize
    step = max(1, block_bytes // max(1, bytes_per_image))
    for first in range(0, inputs.shape[0], step):
        block = slice(first, first + step)
        rows = patches(inputs[block].to(product_dtype), geometry)  # (groups, rows, columns)
        targets = responses(outputs[block].to(product_dtype), geometry)  # (groups, rows, outputs)
        _add_block(sums, rows, targets, geometry)


def _add_block(sums: Sums, rows: Tensor, targets: Tensor, geometry: LayerGeometry) -> None:
    sum_x = rows.sum(1, dtype=torch.float64)
    power = targets.double().square().sum((1, 2))
    if not bool(torch.isfinite(sum_x).all() and torch.isfinite(power).all()):
        raise NonFiniteError(
            f"The activations of layer '{geometry.layer}' are not all finite.",
            expected="finite values",
            got="NaN or infinity",
            where=geometry.layer,
            remedy="check the model and its inputs; a chunk that was lost also reads as NaN",
        )
    transposed = rows.transpose(1, 2)
    sums.gram.add_(transposed @ rows)
    sums.cross.add_(transposed @ targets)
    sums.sum_x.add_(sum_x)
    sums.sum_y.add_(targets.sum(1, dtype=torch.float64))
    sums.power.add_(power)
    sums.count.add_(rows.shape[1])


def merge(first: Sums, second: Sums) -> Sums:
    """The sums over both sets of patches, as new tensors.

    Raises:
        StatisticsError: they belong to layers of different shapes.
    """
    if first.gram.shape != second.gram.shape or first.cross.shape != second.cross.shape:
        raise StatisticsError(
            "Statistics of differently shaped layers cannot be merged.",
            expected=f"gram {tuple(first.gram.shape)}, cross {tuple(first.cross.shape)}",
            got=f"gram {tuple(second.gram.shape)}, cross {tuple(second.cross.shape)}",
        )
    return Sums(**{name: getattr(first, name) + getattr(second, name) for name in FIELDS})


def moments(sums: Sums, about: tuple[np.ndarray, np.ndarray] | None = None) -> Moments:
    """Finalize: second moments about the mean, or about a given point.

    With u, v the point, Σ(x−u)(y−v)ᵀ = Σxyᵀ − u(Σy)ᵀ − (Σx)vᵀ + T·u vᵀ, all in float64. What varies by less than
    the round-off of that difference (1e-11 of its raw second moment) is constant: its moments are exactly 0.

    Args:
        sums: over at least one patch.
        about: `(u, v)` of shapes (groups, columns) and (groups, outputs); None for the mean of these sums.

    Raises:
        StatisticsError: there are no patches.
    """
    count = float(sums.count)
    if count <= 0:
        raise StatisticsError(
            "These statistics hold no patches.", expected="at least one image per fold", got="none",
            remedy="capture more images or use fewer folds",
        )  # fmt: skip
    fields = {name: tensor.cpu().numpy() for name, tensor in sums.tensors().items()}
    mean_x, mean_y = fields["sum_x"] / count, fields["sum_y"] / count
    u, v = (mean_x, mean_y) if about is None else about
    gram, cross = fields["gram"] / count, fields["cross"] / count
    for second, far, point in ((gram, mean_x, u), (cross, mean_y, v)):  # in place: a Gram may be gigabytes
        second -= _outer(u, far)
        second -= _outer(mean_x, point)
        second += _outer(u, point)
    power = fields["power"] / count - 2 * (v * mean_y).sum(1) + (v * v).sum(1)
    gram = gram + gram.transpose(0, 2, 1)
    gram /= 2
    constant_x = gram.diagonal(axis1=1, axis2=2) <= _ROUND_OFF * fields["gram"].diagonal(axis1=1, axis2=2) / count
    constant_y = power <= _ROUND_OFF * fields["power"] / count
    varies = ~constant_x
    gram *= varies[:, :, None] & varies[:, None, :]
    cross *= varies[:, :, None] & ~constant_y[:, None, None]
    return Moments(gram, cross, np.where(constant_y, 0.0, power), u, v, count)


def origin(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """The point zero, for `moments`."""
    return np.zeros(sums.sum_x.shape), np.zeros(sums.sum_y.shape)


def _outer(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    product: np.ndarray = first[:, :, None] * second[:, None, :]
    return product
