"""Latency of every architecture that channel counts describe, from a table of measured layers.

    seconds(counts) = scale · Σ_layers table_layer(inputs kept, outputs kept)  +  rest · Σ outputs kept / Σ outputs

Each convolution or linear layer was timed alone at a few widths of its inputs and outputs; between these the table
is interpolated linearly in both. What the whole model takes beyond its layers (normalisation, activations, pooling,
overhead) is `rest`, shared out in proportion to the numbers that the layers put out; where the layers alone take
longer than the model does, `scale` is below 1 and there is no rest. So the whole model's latency is met exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from streamsparse.errors import UsageError
from streamsparse.kernels.costs import CostModel, Counts

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerTable:
    """One layer's measured seconds.

    Attributes:
        layer: module path; its weight is the cost model's tensor `layer + ".weight"`.
        outputs: widths of the weight's first dimension that were measured, ascending, the last the original's.
        inputs: of its second dimension, as well; a single one where inputs follow from outputs (grouped layers).
        seconds: (outputs, inputs), the least of a few passes.
        numbers: that one output channel holds for one image.
    """

    layer: str
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    seconds: Float64[np.ndarray, "outputs inputs"]
    numbers: int

    def __post_init__(self) -> None:
        check_table(self.outputs, self.inputs, self.seconds)

    def at(self, outputs: Floats, inputs: Floats) -> Floats:
        """Seconds at these widths, interpolated; below the least measured ones, those of the least."""
        rows, row_share = _bracket(np.asarray(self.outputs, dtype=np.float64), outputs)
        columns, column_share = _bracket(np.asarray(self.inputs, dtype=np.float64), inputs)
        row_after = np.minimum(rows + 1, len(self.outputs) - 1)
        column_after = np.minimum(columns + 1, len(self.inputs) - 1)
        low = _between(self.seconds[rows, columns], self.seconds[rows, column_after], column_share)
        high = _between(self.seconds[row_after, columns], self.seconds[row_after, column_after], column_share)
        return _between(low, high, row_share)


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Seconds of one forward pass as a function of the channels kept per group.

    Attributes:
        costs: of the same model; knows the sizes of its weights.
        layers: tables, in order of execution.
        whole_seconds: of the original.
        device: as given, with which so many images were passed at once on so many threads.
    """

    costs: CostModel
    layers: tuple[LayerTable, ...]
    whole_seconds: float
    device: str
    batch_images: int
    threads: int

    @property
    def weights(self) -> tuple[str, ...]:
        """The cost model's tensor of every layer."""
        return tuple(f"{table.layer}.weight" for table in self.layers)

    def prices(self) -> list[Callable[[Floats, Floats], Floats]]:
        """For every layer, seconds as a function of its outputs and inputs; they add up to `seconds`."""
        of_layers, numbers = self._whole()
        scale = min(1.0, self.whole_seconds / of_layers)
        rest = (self.whole_seconds - scale * of_layers) / numbers

        def price(outputs: Floats, inputs: Floats, table: LayerTable) -> Floats:
            found: Floats = scale * table.at(outputs, inputs) + rest * table.numbers * outputs
            return found

        return [partial(price, table=table) for table in self.layers]

    def seconds(self, counts: Counts | NDArray[Any]) -> Floats:
        """Predicted seconds for kept counts: a mapping (absent groups are whole) or (..., groups).

        Returns:
            (...,), float64.
        """
        widths = self.costs.tensor_widths(counts, self.weights)
        prices = enumerate(self.prices())
        return np.asarray(sum(price(widths[..., place, 0], widths[..., place, 1]) for place, price in prices))

    def _whole(self) -> tuple[float, float]:
        """Of the original: seconds of all layers by themselves, and numbers that they put out."""
        widths = self.costs.tensor_widths({}, self.weights)
        by_layer = list(zip(self.layers, widths, strict=True))
        seconds = sum(float(table.at(row[0], row[1])) for table, row in by_layer)
        return seconds, sum(float(row[0]) * table.numbers for table, row in by_layer)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object, the cost model left out; `from_json` is its inverse."""
        layers = [
            {
                "layer": table.layer,
                "outputs": list(table.outputs),
                "inputs": list(table.inputs),
                "seconds": table.seconds.tolist(),
                "numbers": table.numbers,
            }
            for table in self.layers
        ]
        about = {name: getattr(self, name) for name in ("whole_seconds", "device", "batch_images", "threads")}
        return {**about, "layers": layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], costs: CostModel) -> LatencyModel:
        """Rebuild what `to_json` gave, with the cost model of the same network."""
        layers = tuple(
            LayerTable(
                entry["layer"], tuple(entry["outputs"]), tuple(entry["inputs"]),
                np.asarray(entry["seconds"], dtype=np.float64), entry["numbers"],
            )
            for entry in data["layers"]
        )  # fmt: skip
        return cls(costs, layers, data["whole_seconds"], data["device"], data["batch_images"], data["threads"])


def check_table(outputs: tuple[int, ...], inputs: tuple[int, ...], seconds: Floats) -> None:
    """Refuse a table that cannot be interpolated.

    Raises:
        UsageError: widths that do not ascend, or another number of seconds.
    """
    ascending = all(widths and list(widths) == sorted(set(widths)) for widths in (outputs, inputs))
    if not ascending or seconds.shape != (len(outputs), len(inputs)):
        raise UsageError(
            "A table of latencies needs ascending widths and a time for every pair.",
            expected=f"({len(outputs)}, {len(inputs)}) times",
            got=f"{seconds.shape} for outputs {outputs} and inputs {inputs}",
        )


def _bracket(widths: Floats, wanted: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Index of the measured width at or below, and the share of the way to the next one."""
    if len(widths) == 1:
        return np.zeros(wanted.shape, dtype=np.int64), np.zeros(wanted.shape)
    clipped = np.clip(wanted, widths[0], widths[-1])
    index = np.clip(np.searchsorted(widths, clipped, side="right") - 1, 0, len(widths) - 2)
    return index, (clipped - widths[index]) / (widths[index + 1] - widths[index])


def _between(low: Floats, high: Floats, share: Floats) -> Floats:
    return low + share * (high - low)
