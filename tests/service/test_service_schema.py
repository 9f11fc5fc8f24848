"""The API does what its OpenAPI document says, for generated requests, and never fails with 500."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.service.live import serving

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, solved_run: Path):  # type: ignore[no-untyped-def]
    """The schema of a service over one run that does no jobs."""
    import shutil

    root = tmp_path_factory.mktemp("described")
    shutil.copytree(solved_run, root / "small")
    with serving(root, jobs=0) as live:
        yield schemathesis.openapi.from_url(f"{live.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(
    max_examples=12, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_the_api_is_as_described(case) -> None:  # type: ignore[no-untyped-def]
    case.call_and_validate(
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.specs.openapi.checks.status_code_conformance,
            schemathesis.specs.openapi.checks.content_type_conformance,
            schemathesis.specs.openapi.checks.response_schema_conformance,
        ]
    )


def test_every_route_is_described_with_its_problems(described) -> None:  # type: ignore[no-untyped-def]
    paths = described.raw_schema["paths"]
    assert len(paths) >= 20
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            problem = operation["responses"]["422"]["content"]
            assert list(problem) == ["application/problem+json"], (method, path)
