"""Errors as `application/problem+json` (RFC 9457), with the fields of the library's error tree."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from streamsparse.service.schemas.names import View


class Problem(View):
    """Why a request failed, or why a job did."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "type": "urn:streamsparse:error:BudgetError",
                "title": "No architecture meets this budget.",
                "status": 422,
                "error": "BudgetError",
                "expected": "params ≤ 100",
                "got": "at least 1,204 with as few channels in every group as may be",
                "where": "--budget",
                "remedy": "raise the budget, fix fewer channel counts, or loosen the constraints",
            }
        },
    )

    type: str = Field(description="A URN that names the kind of error.")
    title: str = Field(description="What went wrong, in one sentence.")
    status: int | None = Field(default=None, description="HTTP status; null for the failure of a job.")
    error: str = Field(description="Name of the error in the library's tree, or of the HTTP layer's own.")
    expected: str | None = Field(default=None, description="What would have been right.")
    got: str | None = Field(default=None, description="What was found instead.")
    where: str | None = Field(default=None, description="The field, layer or file concerned.")
    remedy: str | None = Field(default=None, description="What to do now.")
