"""Runs and checkpoints as the service shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from streamsparse.service.schemas.budgets import CostsView
from streamsparse.service.schemas.names import Body, Name, View
from streamsparse.service.schemas.problems import Problem

Progressed = Literal["missing", "incomplete", "complete"]
Begun = Literal["missing", "begun"]


class RunSummary(View):
    """A run in the list; `stages` says what has begun, the run's own page what is complete."""

    id: str
    state: Literal["readable", "unreadable"]
    problem: Problem | None = Field(default=None, description="Why it cannot be read.")
    registered: bool = Field(description="Known by a URL that somebody registered, not by its place under ROOT.")
    created: str | None = None
    model: str | None = Field(default=None, description="Class of the model.")
    architecture: str | None = Field(default=None, description="Such as torchvision:resnet18.")
    images: int | None = None
    stages: dict[str, Begun] = Field(default_factory=dict)
    checkpoints: list[str] = Field(default_factory=list)
    active_jobs: int = Field(default=0, description="That are queued, running or waiting.")


class RunList(View):
    runs: list[RunSummary]


class StageView(View):
    """One stage of a run."""

    stage: Literal["capture", "accumulate", "solve", "weights", "write"]
    state: Progressed
    detail: str
    bytes: int


class GroupView(View):
    """A group of channels that are kept or cut together."""

    name: str
    size: int
    whole: str | None = Field(description="Why it stays whole, or null.")
    layers: list[str] = Field(description="Consumers whose weights are re-estimated.")


class Verification(View):
    """What the last finished job of kind `verify` found."""

    job: str
    finished: datetime
    problems: list[dict[str, Any]]


class RunView(View):
    """What a run holds."""

    id: str
    registered: bool
    manifest: dict[str, Any] = Field(description="Without the channel graph.")
    stages: list[StageView]
    groups: list[GroupView]
    costs: CostsView = Field(description="Of the original.")
    solution: dict[str, Any] | None = Field(description="Budget, mode, counts and costs of the present solution.")
    checkpoints: list[str]
    has_report: bool
    verification: Verification | None


class Registration(Body):
    """A captured run that lies elsewhere."""

    id: Name = Field(description="Name under which the service will know it.")
    url: str = Field(min_length=1, max_length=1000, description="Inside ROOT or a prefix that the server allows.")


class DeletionToken(View):
    """The first of two steps to delete a run."""

    run: str
    token: str = Field(description="Send it as the header `Deletion-Token` of DELETE /api/v1/runs/{run}.")
    expires: datetime
    consequence: str = Field(description="What the second step will do.")


class CheckpointFile(View):
    """One file of a checkpoint."""

    name: str
    bytes: int
    sha256: str | None = Field(description="Hexadecimal; null where the service has not read the file.")


class CheckpointSummary(View):
    name: str
    bytes: int
    files: list[str]


class CheckpointList(View):
    run: str
    checkpoints: list[CheckpointSummary]


class CheckpointView(View):
    """A checkpoint: what it costs, what it keeps, how to download it."""

    run: str
    name: str
    created: str | None
    costs: CostsView | None
    original_costs: CostsView | None
    sparsity: float | None
    budget: str | None
    refit: str | None = Field(description='"independent" or "sequential".')
    kept: dict[str, int] = Field(description="Channels kept, by group.")
    original_sizes: dict[str, int]
    held_out_errors: dict[str, float] = Field(description="By re-estimated layer.")
    evaluation: dict[str, Any] | None = Field(description="What `evaluate` found, if it ran.")
    files: list[CheckpointFile]
    archive: CheckpointFile = Field(description="The tar of all files.")


class TicketRequest(Body):
    """A link for places that cannot send a token, such as an <iframe> or a browser's download."""

    path: str = Field(
        min_length=1,
        max_length=500,
        pattern=r"^/api/v1/runs/[A-Za-z0-9._/-]+$",
        description="Of a report, a file of a checkpoint or an archive.",
    )


class Ticket(View):
    url: str = Field(description="The path with a ticket, good for GET and HEAD of this path alone.")
    expires: datetime


class ServiceView(View):
    """What this server offers."""

    version: str
    kinds: list[str]
    data: list[str] = Field(description="Data sets for `evaluate` and `sensitivity`, by name.")
    authentication: Literal["none", "bearer"]
    scopes: list[str] = Field(description="Of the caller.")
    scheduler: bool = Field(description="Whether accumulations go to a Dask cluster.")
    upload_limit_bytes: int
