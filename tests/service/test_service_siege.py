"""kill -9 of a worker, the scheduler and the service while jobs run: none is lost, none is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.siege import besieged
from tests.small import captured_run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_outlive_workers_scheduler_and_service(tmp_path: Path) -> None:
    captured_run(tmp_path / "captured", images=300, batch=4)
    kills = {"worker": 1, "scheduler": 1, "service": 1}
    found = besieged(tmp_path / "captured", tmp_path, runs=4, kills=kills, seed=1)
    assert (found["lost"], found["wrong_results"], found["errors"]) == (0, 0, []), found
    assert found["kills"] == kills, found
    assert found["attempts"] > found["jobs"], found
    # Which of the kills strikes a job in its work is a matter of time.
    said = " ".join(found["reasons"]).lower()
    assert "cluster" in said or "its service stopped" in said, found
