"""JSON from strangers: one object, unique keys, bounded size, no NaN."""

from __future__ import annotations

import json
from typing import Any, cast

from streamsparse.errors import CheckpointError


def strict_json(content: bytes, where: str, limit_bytes: int) -> dict[str, Any]:
    """One JSON object without repeated keys, NaN or excessive size.

    Raises:
        CheckpointError: anything else.
    """
    if len(content) > limit_bytes:
        raise _json_error(where, f"at most {limit_bytes} bytes", f"{len(content)} bytes")
    try:
        data = json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _json_error(where, "one JSON object with unique keys", error) from error
    if not isinstance(data, dict):
        raise _json_error(where, "one JSON object", type(data).__name__)
    return cast("dict[str, Any]", data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"repeated key {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _json_error(where: str, expected: object, got: object) -> CheckpointError:
    return CheckpointError(
        "The checkpoint cannot be read.",
        expected=expected,
        got=got,
        where=where,
        remedy="The file is damaged or not a checkpoint: copy or write it again.",
    )
