"""What is decided about a model, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


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
        keep: sorted positions that stay, by group.
        sizes: positions that there were, by group.
        predicted_errors: held-out relative error of each group's consumers.
        methods: what found each support.
        costs: of the pruned network; original_costs: of the original.
        budget: as given, or None for counts by hand.
        predicted_losses: of the network with one group cut so far, by group; the pruned network's is near the sum.
        loss_kind: "divergence" (nats per image), "squared difference" (of outputs), or "error": held-out errors.
        predicted_seconds: of a forward pass, for a budget of latency.
        measured_loss: of the pruned network before any refit in order, where `improve` measured it.
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
    measured_loss: float | None = None

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
        training_error: on all folds.
        held_out_error: mean over folds of the error on a fold of weights fitted on the others.
        ridge: that was chosen, relative to each channel's mean diagonal: how far weights are shrunk towards the
            original's.
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
    """What cutting one group alone does to the model's output, its consumers re-estimated.

    Attributes:
        group: name.
        counts: positions that were kept, ascending.
        losses: for each count, the mean Kullback-Leibler divergence of the class probabilities from the original's,
            nats per image; of outputs that are not class logits, their mean squared difference over their variance.
    """

    group: str
    counts: tuple[int, ...]
    losses: tuple[float, ...]
