"""Verification of a whole run: everything is read, checked against its checksum and its plan, and named if wrong.

    CHECKS      one function for each part of a run; a new kind of stored data adds its own

What is merely unfinished (a capture that was killed, a stage that has not begun) is no problem: nothing reads it as
whole. A verification beside a running stage may report what that stage is just replacing.
"""

from __future__ import annotations

from collections.abc import Callable

from streamsparse.errors import RunNotFoundError, SchemaVersionError
from streamsparse.events import OnEvent, ignore
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.store import Run, layout
from streamsparse.verification.activations import check_activations
from streamsparse.verification.beginning import check_manifest, check_weights
from streamsparse.verification.findings import Findings, Problem, Subject
from streamsparse.verification.outcomes import (
    check_checkpoints,
    check_evaluations,
    check_fronts,
    check_latencies,
    check_sensitivities,
    check_solution,
    check_timings,
)
from streamsparse.verification.sums import check_lanes, check_partials, check_statistics

Check = Callable[[Subject, Findings], None]

CHECKS: list[tuple[str, Check]] = [
    ("manifest", check_manifest),
    ("model", check_weights),
    ("activations", check_activations),
    ("partials", check_partials),
    ("partials", check_lanes),
    ("statistics", check_statistics),
    ("fronts", check_fronts),
    ("sensitivities", check_sensitivities),
    ("solution", check_solution),
    ("checkpoints", check_checkpoints),
    ("evaluations", check_evaluations),
    ("latencies", check_latencies),
    ("timings", check_timings),
]
"""(part, check), in the order of the stages."""


def verify_run(run: Run, on_event: OnEvent = ignore) -> list[Problem]:
    """Read and check everything that a run holds; changes nothing.

    Args:
        run: at any stage, of any sink.
        on_event: hears of progress, and of what is odd but harmless (leftovers of a kill).

    Returns:
        every problem, in the order of the stages; none if the run is whole as far as it has come.

    Raises:
        RunNotFoundError: there is no run.
        SchemaVersionError: written by another version of the layout, of which nothing can be said.
    """
    subject = Subject(run, _captured(run), on_event)
    problems: list[Problem] = []
    for part, check in CHECKS:
        findings = Findings(part, on_event)
        with findings.guarding(part):
            check(subject, findings)
        problems += findings.problems
    return problems


def _captured(run: Run) -> Captured | None:
    """The manifest if it is whole; `check_manifest` says what is wrong with it otherwise."""
    if not run.documents.exists(layout.MANIFEST):
        run.manifest()  # says what is there instead
    try:
        return read_captured(run)
    except (RunNotFoundError, SchemaVersionError):
        raise
    except Exception:  # noqa: BLE001  a damaged manifest may break its parsers in any way
        return None


__all__ = ["CHECKS", "Check", "Findings", "Problem", "Subject", "verify_run"]
