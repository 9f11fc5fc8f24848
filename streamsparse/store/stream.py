"""What a stream of activations looks like, described before any array is created."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from streamsparse.errors import CorruptDataError
from streamsparse.types import LayerGeometry, geometry_from_json

CHUNK_BYTES = 8 * 2**20
SIDES = ("input", "output")


@dataclass(frozen=True)
class CapturedLayer:
    """A layer whose input and output are dumped, once per call of the module in one forward pass."""

    geometry: LayerGeometry
    calls: int = 1

    def shape(self, side: str) -> tuple[int, ...]:
        """Of one image."""
        return self.geometry.input_shape if side == "input" else self.geometry.output_shape


@dataclass(frozen=True)
class StreamPlan:
    """One shard of one stream.

    Attributes:
        stream: name of the pass.
        shard, shards: this is shard number `shard` of `shards`.
        first_image: number of the shard's first image in the run.
        images: of this shard.
        batch_images: images per batch; a batch is committed whole.
        dtype: of the stored activations, "float16" or "float32".
        codec: by name, see `store.codecs`.
        layers: in order of execution.
    """

    stream: str
    shard: int
    shards: int
    first_image: int
    images: int
    batch_images: int
    dtype: str
    codec: str
    layers: tuple[CapturedLayer, ...]

    @property
    def batches(self) -> int:
        """Number of batches; the last may be shorter."""
        return -(-self.images // self.batch_images)

    def span(self, batch: int) -> range:
        """The images of one batch, counted from the start of the shard."""
        return range(batch * self.batch_images, min(self.images, (batch + 1) * self.batch_images))

    def chunk_images(self, layer: CapturedLayer, side: str) -> int:
        """Images per chunk: the largest divisor of a batch with at most CHUNK_BYTES raw bytes."""
        image_bytes = prod(layer.shape(side)) * np.dtype(self.dtype).itemsize
        fitting = [
            size
            for size in range(1, self.batch_images + 1)
            if self.batch_images % size == 0 and (size == 1 or size * image_bytes <= CHUNK_BYTES)
        ]
        return fitting[-1]

    @property
    def raw_bytes(self) -> int:
        """Uncompressed size of the shard."""
        values = sum(layer.calls * prod(layer.shape(side)) for layer in self.layers for side in SIDES)  # per image
        return self.images * values * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan; a batch marker names the plan it belongs to."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def plan_from_json(value: dict[str, Any]) -> StreamPlan:
    """The inverse of `StreamPlan.to_json`.

    Raises:
        CorruptDataError: fields are missing or of the wrong type.
    """
    try:
        layers = tuple(
            CapturedLayer(geometry_from_json(entry["geometry"]), entry["calls"]) for entry in value["layers"]
        )
        return StreamPlan(**{**value, "layers": layers})
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError("The plan of a capture is not readable.", got=repr(error)) from error
