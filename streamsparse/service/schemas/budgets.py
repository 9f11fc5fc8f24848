"""Budgets: what a client asks for, and the architecture that answers it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from streamsparse.service.schemas.names import Body, BudgetText, Count, ModuleName, Position, View

Positions = Annotated[list[Position], Field(max_length=100_000)]
Quantity = Literal["params", "macs", "bytes", "max-error"]
DEVICE_PATTERN = r"^[A-Za-z0-9_.:-]{1,60}$"


class ConstraintOptions(Body):
    """Bounds on every group's count and support, as the options of `streamsparse solve`."""

    round_to: int = Field(default=1, ge=1, le=4096, description="Keep a multiple of so many channels, or all.")
    min_channels: float = Field(
        default=1, gt=0, le=10_000_000, description="Keep at least so many channels per group; below 1: a fraction."
    )
    keep: dict[ModuleName, Positions] = Field(
        default_factory=dict, max_length=10_000, description="Positions that must stay, by group."
    )
    drop: dict[ModuleName, Positions] = Field(
        default_factory=dict, max_length=10_000, description="Positions that must go, by group."
    )
    leave: list[ModuleName] = Field(
        default_factory=list, max_length=1000, description="Layers to leave alone; * and ? match anything."
    )


class Choice(ConstraintOptions):
    """A budget or counts by hand, and constraints."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"budget": "params=0.2", "round_to": 8}},
    )

    budget: BudgetText | None = Field(
        None,
        description="params=X, macs=X or bytes=X (a fraction up to 1, or absolute), sparsity=X, latency=X@DEVICE, "
        "max-loss=X or max-error=X.",
    )
    channels: dict[ModuleName, Count] | None = Field(
        default=None, max_length=10_000, description="Channels to keep by hand, by group."
    )


class PlanRequest(Choice):
    """What would this choice give? Nothing is decided."""

    positions: bool = Field(default=False, description="Answer with the kept positions of every group too.")
    device: str | None = Field(
        default=None,
        pattern=DEVICE_PATTERN,
        description="Predict seconds of a forward pass on it; one of the front's `latency_devices`.",
    )
    full: bool = Field(
        default=False,
        description="Search as long as a job of kind `solve` does, which takes some times as long and is rarely "
        "better: for the last look before a checkpoint is written.",
    )


class CostsView(View):
    """What a network costs: parameters, multiply-accumulates for one image, bytes of its tensors."""

    parameters: int
    macs: int
    bytes: int


class PlannedGroup(View):
    """One group of channels that are kept or cut together."""

    name: str
    size: int = Field(description="Channels of the original.")
    kept: int
    predicted_error: float | None = Field(description="Held-out relative error; null for a group that stays whole.")
    predicted_loss: float | None = Field(description="Of the network with this group cut so far.")
    method: str | None = Field(description="What found the support.")
    whole: str | None = Field(description="Why the group stays whole, or null.")
    positions: list[int] | None = Field(default=None, description="Kept positions, if they were asked for.")


class PlannedLayer(View):
    """One convolution or linear layer before and after, in order of execution."""

    layer: str
    inputs: int
    inputs_kept: int
    outputs: int
    outputs_kept: int
    parameters: int
    original_parameters: int
    macs: int
    original_macs: int


class PlanView(View):
    """The architecture of least predicted loss within the budget."""

    run: str
    budget: str | None
    costs: CostsView
    original_costs: CostsView
    sparsity: float = Field(description="Fraction of the parameters that goes.")
    predicted_loss: float = Field(description="Sum over the groups; its unit is named by `loss_kind`.")
    loss_kind: str = Field(description='"divergence" (nats per image), "squared difference" or "error".')
    predicted_seconds: float | None = Field(description="Of a forward pass, for a latency budget or a device.")
    original_seconds: float | None = Field(description="Of the original's.")
    groups: list[PlannedGroup]
    layers: list[PlannedLayer]


class FrontPoint(View):
    """What one budget gives."""

    budget: str
    fraction: float = Field(description="Of the original's quantity that stays (max-error: of parameters).")
    costs: CostsView
    predicted_loss: float
    counts: dict[str, int] = Field(description="Channels kept, by group.")
    predicted_seconds: float | None = Field(default=None, description="Of a forward pass, for a device.")


class FrontGroup(View):
    """One group, and how the error of its consumers grows as it is cut."""

    name: str
    size: int
    whole: str | None = Field(description="Why the group stays whole, or null.")
    layers: list[str] = Field(description="Consumers whose weights are re-estimated.")
    held_out_errors: list[float] | None = Field(default=None, description="By count of kept channels, from 0.")


class FrontView(View):
    """The Pareto front of the network: predicted loss against a quantity."""

    run: str
    quantity: Quantity
    loss_kind: str
    original_costs: CostsView
    points: list[FrontPoint]
    groups: list[FrontGroup]
    latency_devices: list[str] = Field(description="Devices for which a budget of latency can be given.")
