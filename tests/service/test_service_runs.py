"""Runs over HTTP: listed, shown, planned for."""

from __future__ import annotations

from tests.service.live import Live


def test_the_list_and_the_page_of_a_run(shared: Live) -> None:
    listed = shared.json("GET", "/api/v1/runs")["runs"]
    assert [run["id"] for run in listed] == ["small"]
    assert listed[0]["stages"] == {
        "capture": "begun", "accumulate": "begun", "solve": "begun", "weights": "begun",
    }  # fmt: skip
    assert listed[0]["checkpoints"] == ["pruned"]
    shown = shared.json("GET", "/api/v1/runs/small")
    assert {stage["stage"]: stage["state"] for stage in shown["stages"]} == dict.fromkeys(
        ("capture", "accumulate", "solve", "weights", "write"), "complete"
    )
    assert shown["manifest"]["model"]["class"] == "tests.small.SmallNet"
    assert [group["name"] for group in shown["groups"]] == ["conv1", "conv2", "fc1"]
    assert shown["solution"]["budget"] == "params=0.5"
    assert shown["costs"]["parameters"] > shown["solution"]["costs"]["parameters"]


def test_health_readiness_and_metrics(shared: Live) -> None:
    assert shared.json("GET", "/healthz") == {"status": "alive"}
    assert shared.json("GET", "/readyz") == {"status": "ready"}
    shared.json("GET", "/api/v1/runs/small")
    text = shared.http.get("/metrics").text
    assert 'streamsparse_jobs{state="queued"} 0.0' in text
    assert 'streamsparse_requests_total{method="GET",route="/api/v1/runs/{run}",status="200"}' in text
