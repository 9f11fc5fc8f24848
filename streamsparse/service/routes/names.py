"""Parts of addresses, checked before a route sees them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path

from streamsparse.service.schemas.names import NAME_PATTERN
from streamsparse.service.schemas.problems import Problem

RunName = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of a run.", examples=["lenet"])]
CheckpointName = Annotated[str, Path(pattern=NAME_PATTERN, description="Of a checkpoint.", examples=["pruned"])]
FileName = Annotated[str, Path(pattern=NAME_PATTERN, description="Of a file.", examples=["model.safetensors"])]
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="Of a job.", examples=["5f0c2f6a9d1e4b7c"])]

_TITLES = {
    400: "The request does not parse.",
    401: "A token is needed.",
    403: "The token may not do that, or the request comes from another site.",
    404: "There is nothing of this name.",
    409: "The run, or the job, is not in a state for this.",
    413: "Too large.",
    415: "A body of another type.",
    416: "Nothing in this range.",
    421: "The service is not known under this name.",
    422: "The request does not fit the schema, or cannot be met.",
    429: "Too many requests.",
    500: "Stored data is damaged.",
    503: "The disk, the store or the cluster failed; try again.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that are problems; those that any request can meet are always among them."""
    every = sorted({400, 401, 403, 404, 421, 422, 429, 500, 503, *statuses})
    return {status: {"model": Problem, "description": _TITLES[status]} for status in every}
