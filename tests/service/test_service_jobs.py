"""Jobs from submission to result: real processes, killed ones, cancelled ones, two services on one queue."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

import streamsparse as ss
from streamsparse.client import parsed_events
from tests.service.live import Live, serving
from tests.small import SmallNet, build


def test_a_checkpoint_is_written_and_its_events_resume(live: Live, root: Path) -> None:
    body = {"budget": "params=0.4", "name": "small-0.4"}
    job = live.json("POST", "/api/v1/runs/small/checkpoints", 202, json=body)
    assert job["state"] == "queued"
    with live.http.stream("GET", f"/api/v1/jobs/{job['id']}/events", timeout=240) as stream:
        events = list(parsed_events(stream.iter_lines()))
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["state"] for event in events if event["type"] == "state"] == ["queued", "running", "succeeded"]
    assert {event["stage"] for event in events if event["type"] == "finished"} >= {"refit", "write"}
    path = f"/api/v1/jobs/{job['id']}/events"
    with live.http.stream("GET", path, headers={"Last-Event-ID": "3"}) as stream:
        again = list(parsed_events(stream.iter_lines()))
    assert again == events[3:]
    known = live.http.get(path, headers={"Last-Event-ID": str(len(events))})
    assert known.status_code == 204  # a browser stops to come back

    found = live.wait(job["id"])
    assert found["attempts"] == 1
    assert found["result"]["checkpoint"]["name"] == "small-0.4"
    assert any(stage["stage"] == "write" and stage["finished"] for stage in found["progress"])
    loaded = ss.load(root / "small" / "checkpoints" / "small-0.4", build(SmallNet))
    parameters = sum(one.numel() for one in loaded.parameters())
    shown = live.json("GET", "/api/v1/runs/small/checkpoints/small-0.4")
    assert parameters == shown["costs"]["parameters"] == found["result"]["costs"]["parameters"]


@pytest.mark.slow
def test_a_killed_process_is_tried_again_and_an_impossible_job_fails_with_its_reason(root: Path) -> None:
    with serving(root, warm=True) as live:
        _kill_report_fail(live)


def _kill_report_fail(live: Live) -> None:
    job = live.json("POST", "/api/v1/runs/small/jobs", 202, json={"kind": "verify"})["id"]
    live.wait(job, states=("running",))
    job_processes()[0].kill()
    found = live.wait(job)
    assert (found["state"], found["attempts"]) == ("succeeded", 2)
    states = [event.data for event in _events(live, job) if event.data["type"] == "state"]
    assert [state["state"] for state in states] == ["queued", "running", "waiting", "running", "succeeded"]
    assert "signal 9" in states[2]["reason"]
    assert live.json("GET", "/api/v1/runs/small")["verification"]["problems"] == []

    report = live.json("POST", "/api/v1/runs/small/jobs", 202, json={"kind": "report"})
    assert "report.html" in live.wait(report["id"])["result"]["files"]
    page = live.http.get("/api/v1/runs/small/report").text
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "Run <code>small</code>" in page
    folder = live.service.settings.directory
    assert folder is not None
    written = [path.read_text() for path in (folder / "small" / "report").iterdir() if path.is_file()]
    assert [text for text in (page, *written) if str(folder) in text] == []  # where it lies is not for clients

    body = {"kind": "solve", "parameters": {"budget": "params=0.0001"}}
    failed = live.wait(live.json("POST", "/api/v1/runs/small/jobs", 202, json=body)["id"])
    assert failed["state"] == "failed"
    assert failed["error"]["error"] == "BudgetError"
    assert failed["error"]["expected"].startswith("params")


def test_cancelling_ends_the_process_and_retrying_queues_again(live: Live) -> None:
    first = live.json("POST", "/api/v1/runs/small/jobs", 202, json={"kind": "verify"})["id"]
    second = live.json("POST", "/api/v1/runs/small/jobs", 202, json={"kind": "verify"})["id"]
    live.wait(first, states=("running",))
    assert live.json("POST", f"/api/v1/jobs/{second}/cancel")["state"] == "cancelled"  # it only waited
    live.json("POST", f"/api/v1/jobs/{first}/cancel")
    assert live.wait(first)["state"] == "cancelled"
    assert [child.cmdline() for child in job_processes() if child.is_running()] == []
    again = live.json("POST", f"/api/v1/jobs/{second}/retry")
    assert again["state"] in ("queued", "running")
    live.json("POST", f"/api/v1/jobs/{second}/cancel")
    assert live.wait(second)["state"] == "cancelled"
    live.json("POST", f"/api/v1/jobs/{first}/cancel")  # cancelled already: nothing to do


def test_the_same_key_is_the_same_job(root: Path) -> None:
    with serving(root, jobs=0) as live:
        path, headers = "/api/v1/runs/small/jobs", {"Idempotency-Key": "a-1"}
        body = {"kind": "solve", "parameters": {"budget": "params=0.3"}}
        first = live.json("POST", path, 202, json=body, headers=headers)
        assert live.json("POST", path, 200, json=body, headers=headers) == first
        other = {"kind": "solve", "parameters": {"budget": "params=0.2"}}
        assert live.json("POST", path, 422, json=other, headers=headers)["error"] == "KeyReused"
        assert live.json("POST", path, 202, json=body)["id"] != first["id"]
        assert len(live.json("GET", "/api/v1/jobs?run=small&state=queued")["jobs"]) == 2
        page = live.json("GET", "/api/v1/jobs?limit=1")
        assert live.json("GET", f"/api/v1/jobs?limit=1&before={page['next']}")["jobs"] == [first]


def test_kill_9_of_a_service_loses_no_job_and_another_takes_them_over(root: Path, database_url: str) -> None:
    shutil.copytree(root / "small", root / "other")
    with _started(root, database_url) as (service, url):
        _kill_and_recover(root, database_url, service, url)


def _kill_and_recover(root: Path, database: str, service: subprocess.Popen[str], url: str) -> None:
    jobs = []
    for run in ("small", "small", "other"):
        answer = httpx.post(f"{url}/api/v1/runs/{run}/jobs", json={"kind": "verify"}, timeout=30)
        jobs.append(answer.json()["id"])
    with serving(root, jobs=0, database=database) as beside:  # shares the queue, does not work
        beside.wait(jobs[0], states=("running",))
        workers = psutil.Process(service.pid).children()
        os.kill(service.pid, signal.SIGKILL)
        service.wait()
        # noticed at once: its process is dead
        beside.wait(jobs[0], states=("queued",))
        assert psutil.wait_procs(workers, timeout=30)[1] == []  # jobs do not outlive their service
        with serving(root, jobs=1, database=database) as second:
            ended = [second.wait(job) for job in jobs]
            assert [job["state"] for job in ended] == ["succeeded"] * 3
            assert [job["attempts"] for job in ended] == [2, 1, 1]


@pytest.mark.slow
def test_a_lost_cluster_makes_a_job_wait_with_the_reason(root: Path) -> None:
    with serving(root, scheduler="tcp://127.0.0.1:9") as live:
        job = live.json("POST", "/api/v1/runs/small/jobs", 202, json={"kind": "accumulate"})["id"]
        found = live.wait(job, states=("waiting",))
        assert "scheduler" in found["reason"].lower()
        assert found["next_attempt"] is not None
        assert live.json("POST", f"/api/v1/jobs/{job}/cancel")["state"] in ("cancelled", "running")
        assert live.wait(job)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"kind": "evaluate", "parameters": {"data": "val"}}, 422),
        ({"kind": "solve", "parameters": {"budget": "params=2x"}}, 422),
        ({"kind": "solve", "parameters": {"budget": "params=0.1", "unknown": 1}}, 422),
        ({"kind": "format-disk"}, 422),
    ],
)
def test_jobs_that_cannot_be_are_refused_at_once(shared: Live, body: object, status: int) -> None:
    assert shared.json("POST", "/api/v1/runs/small/jobs", status, json=body)["title"]
    assert shared.json("GET", "/api/v1/jobs")["jobs"] == []


def test_models_are_built_by_registry_names_alone(root: Path) -> None:
    with serving(root, jobs=0, allow_models=()) as live:
        answer = live.json("POST", "/api/v1/runs/small/jobs", 422, json={"kind": "write"})
        assert answer["error"] == "ModelError"
        assert "tests.small:SmallNet" in answer["got"]
    manifest = root / "small" / "manifest.json"
    about = json.loads(manifest.read_text())
    about["model"]["spec"] = "os:system"
    manifest.write_text(json.dumps(about))
    with serving(root) as live:  # even if it was changed after the job was queued, which this stands for
        body = {"run": "small", "run_url": str((root / "small").resolve()), "kind": "write", "parameters": {}}
        from streamsparse.service.jobs.submission import Submission, submit

        job, _ = submit(live.service.queue, Submission(**body, who="test"), 10)  # type: ignore[arg-type]
        assert live.wait(job["id"])["error"]["error"] == "ModelError"


def job_processes(service: int | None = None) -> list[psutil.Process]:
    """Processes of jobs that belong to a service, by default to one in this process."""
    found = []
    for child in psutil.Process(service).children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "streamsparse.service.work" in child.cmdline():
                found.append(child)
    return found


def _events(live: Live, job: str) -> list:  # type: ignore[type-arg]
    from streamsparse.service.jobs.events import read_since

    return read_since(live.service.engine, [(job, 0)])


@contextmanager
def _started(root: Path, database: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tests.service.process", str(root), "1", "--database", database]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        yield service, service.stdout.readline().strip()
        service.kill()
