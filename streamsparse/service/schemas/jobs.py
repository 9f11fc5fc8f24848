"""Jobs: parameters of every kind, and what a job says of itself."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from streamsparse.service.schemas.budgets import Choice, ConstraintOptions
from streamsparse.service.schemas.names import Body, Name, View
from streamsparse.service.schemas.problems import Problem

State = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled"]
Kind = Literal[
    "accumulate", "fronts", "solve", "write", "checkpoint", "report", "evaluate", "sensitivity", "verify"
]
Format = Literal["safetensors", "pt2", "onnx"]
Formats = Annotated[list[Format], Field(min_length=1, max_length=3)]


class AccumulateParameters(Body):
    """Reduce the captured activations to sufficient statistics."""

    folds: int = Field(default=5, ge=2, le=50, description="Folds by sample, for held-out errors.")
    products: Literal["float32", "float64", "tf32", "bfloat16"] = "float32"
    memory_limit_bytes: int | None = Field(default=None, ge=2**20, le=2**50, description="Per worker.")


class FrontsParameters(ConstraintOptions):
    """Find the best support for every number of channels, and decide nothing."""


class SolveParameters(Choice):
    """Choose the channels that stay and re-estimate the weights behind them."""


class WriteParameters(Body):
    """Cut the channels of the run's solution out and write a checkpoint."""

    name: Name = Field(default="pruned", description="Of the checkpoint; one of the same name is replaced.")
    formats: Formats = Field(default=["safetensors"])


class CheckpointParameters(Choice):
    """Solve for a budget and write the result under a name, in one go."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"budget": "params=0.2", "round_to": 8, "name": "fifth"}},
    )

    name: Name = Field(default="pruned", description="Of the checkpoint; one of the same name is replaced.")
    formats: Formats = Field(default=["safetensors"])


class ReportParameters(Body):
    """Write the run's HTML report."""


class VerifyParameters(Body):
    """Read and check all that the run holds."""


class EvaluateParameters(Body):
    """Compare the original with a checkpoint on a data set of the server's."""

    name: Name = Field(default="pruned", description="Of the checkpoint.")
    data: Name = Field(description="One of the data sets that the server was started with; see /api/v1/service.")
    batch_images: int = Field(default=500, ge=1, le=100_000)
    latency: bool = Field(default=False, description="Time both models' forward passes too.")


class SensitivityParameters(Body):
    """Measure what cutting each group alone does to the model's output."""

    data: Name = Field(description="A data set of the server's: the one that was captured.")
    images: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Unseen ones; null: as many as cost little, 256 to 4,096."
    )
    by: Literal["kl", "fisher"] = "kl"
    batch_images: int = Field(default=64, ge=1, le=100_000)


def _with_default(parameters: type[Body]) -> Any:
    return Field(default_factory=parameters)


class AccumulateJob(Body):
    kind: Literal["accumulate"]
    parameters: AccumulateParameters = _with_default(AccumulateParameters)


class FrontsJob(Body):
    kind: Literal["fronts"]
    parameters: FrontsParameters = _with_default(FrontsParameters)


class SolveJob(Body):
    kind: Literal["solve"]
    parameters: SolveParameters


class WriteJob(Body):
    kind: Literal["write"]
    parameters: WriteParameters = _with_default(WriteParameters)


class CheckpointJob(Body):
    kind: Literal["checkpoint"]
    parameters: CheckpointParameters


class ReportJob(Body):
    kind: Literal["report"]
    parameters: ReportParameters = _with_default(ReportParameters)


class VerifyJob(Body):
    kind: Literal["verify"]
    parameters: VerifyParameters = _with_default(VerifyParameters)


class EvaluateJob(Body):
    kind: Literal["evaluate"]
    parameters: EvaluateParameters


class SensitivityJob(Body):
    kind: Literal["sensitivity"]
    parameters: SensitivityParameters


JobRequest = Annotated[
    AccumulateJob
    | FrontsJob
    | SolveJob
    | WriteJob
    | CheckpointJob
    | ReportJob
    | VerifyJob
    | EvaluateJob
    | SensitivityJob,
    Field(discriminator="kind"),
]


class StageProgress(View):
    """How far one stage of a job is."""

    stage: str
    done: int
    total: int | None = Field(description="Null where it is not known.")
    unit: str
    per_second: float | None = Field(description="Units per second since the stage began.")
    seconds_left: float | None = Field(description="At that rate.")
    finished: bool


class JobView(View):
    """A job and what became of it."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "id": "5f0c2f6a9d1e4b7c",
                "run": "lenet",
                "kind": "solve",
                "parameters": {"budget": "params=0.2"},
                "state": "waiting",
                "reason": "The Dask scheduler cannot be reached.",
                "attempts": 2,
                "created": "2026-01-31T12:00:00Z",
                "next_attempt": "2026-01-31T12:00:20Z",
                "progress": [],
            }
        },
    )

    id: str
    run: str
    kind: Kind
    parameters: dict[str, Any]
    state: State
    reason: str | None = Field(default=None, description="Why the job waits, or that it is being cancelled.")
    error: Problem | None = Field(default=None, description="Why it failed.")
    result: dict[str, Any] | None = Field(default=None, description="What it found, once it has succeeded.")
    progress: list[StageProgress] = Field(default_factory=list)
    attempts: int = Field(description="How often it was begun.")
    submitted_by: str = Field(default="local", description="Name of the token that submitted it.")
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    next_attempt: datetime | None = Field(default=None, description="When a waiting job is tried again.")


class JobPage(View):
    """Jobs, the latest first."""

    jobs: list[JobView]
    next: str | None = Field(description="Give it as `before` for the jobs that follow; null at the end.")
