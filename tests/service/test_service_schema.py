"""The API does what its OpenAPI document says, for generated requests, and never fails with 500."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.service.live import serving

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

EXAMPLES = 10
"""Per operation; always the same ones, as long as the code's own literals, which are drawn too, are."""
KNOWN = {"run": "small", "name": "pruned", "file": "config.json"}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, solved_run: Path) -> Iterator[Any]:
    """The schema of a service over one run, which takes jobs but does none."""
    root = tmp_path_factory.mktemp("described")
    shutil.copytree(solved_run, root / "small")
    with serving(root, jobs=0) as live:
        yield schemathesis.openapi.from_url(f"{live.url}/openapi.json")


def test_the_api_is_as_described(described: Any) -> None:
    """Every operation: statuses, media types and bodies as documented, no 500."""
    specs = schemathesis.specs.openapi.checks
    checks = [
        schemathesis.checks.not_a_server_error, specs.status_code_conformance, specs.content_type_conformance,
        specs.response_schema_conformance,
    ]  # fmt: skip
    failures = []
    statuses: Counter[int] = Counter()
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) >= 20
    modes = schemathesis.GenerationMode
    for operation, mode in product(operations, (modes.POSITIVE, modes.NEGATIVE)):

        @settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
        def check(case: Any, known: bool) -> None:
            if known and case.path_parameters:  # beyond "there is no run of this name"
                case.path_parameters |= {key: KNOWN[key] for key in case.path_parameters.keys() & KNOWN}
            answer = case.call()
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=checks)

        try:
            check()
        except Unsatisfiable:
            assert mode is modes.NEGATIVE  # an operation without parameters cannot be asked wrongly
        except Exception as error:  # noqa: BLE001  every operation is looked at, then all that failed are told
            failures.append(f"{operation.label}: {error!r} {getattr(error, 'exceptions', '')}"[:1500])
    assert not failures, "\n\n".join(failures)
    assert {200, 202, 404, 422} <= set(statuses), statuses


def test_every_route_is_described_with_its_problems(described: Any) -> None:
    paths = described.raw_schema["paths"]
    assert len(paths) >= 20
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            problem = operation["responses"]["422"]["content"]
            assert list(problem) == ["application/problem+json"], (method, path)
