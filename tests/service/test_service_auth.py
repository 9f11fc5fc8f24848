"""Tokens, scopes, tickets, limits; what the log says and what it never says."""

from __future__ import annotations

import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamsparse.service import auth
from streamsparse.service.logs import JsonLines, log_as_json
from streamsparse.service.settings import Limits
from tests.service.live import Live, serving


@pytest.fixture
def guarded(root: Path, tmp_path: Path) -> Iterator[tuple[Live, dict[str, dict[str, str]]]]:
    """A service with tokens, and the headers of each scope."""
    path = tmp_path / "tokens"
    tokens: dict[str, str] = {scope: auth.new_token(path, scope, auth.parse_scopes(scope)) for scope in auth.SCOPES}
    headers = {scope: {"Authorization": f"Bearer {token}"} for scope, token in tokens.items()}
    with serving(root, jobs=0, tokens=path) as live:
        yield live, headers


def test_scopes_say_who_may_do_what(guarded: tuple[Live, dict[str, dict[str, str]]]) -> None:
    live, headers = guarded
    assert live.http.get("/healthz").status_code == 200
    nobody = live.http.get("/api/v1/runs")
    assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
    for path in ("/api/v1/runs", "/metrics", "/api/v1/runs/small"):
        assert live.http.get(path).status_code == 401
        assert live.http.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert live.http.get(path, headers={"Authorization": "Basic eDp5"}).status_code == 401
        assert live.http.get(path, headers=headers["read"]).status_code == 200
    body = {"kind": "verify"}
    refused = live.json("POST", "/api/v1/runs/small/jobs", 403, json=body, headers=headers["read"])
    assert refused["expected"] == "scope submit"
    job = live.json("POST", "/api/v1/runs/small/jobs", 202, json=body, headers=headers["submit"])
    assert job["submitted_by"] == "submit"
    live.json("POST", "/api/v1/runs/small/deletion", 403, headers=headers["submit"])
    live.json("POST", "/api/v1/runs/small/deletion", 409, headers=headers["admin"])  # its job has not ended
    assert live.json("GET", "/api/v1/service", headers=headers["submit"])["scopes"] == ["read", "submit"]


def test_a_ticket_reads_one_path_alone(guarded: tuple[Live, dict[str, dict[str, str]]]) -> None:
    live, headers = guarded
    path = "/api/v1/runs/small/checkpoints/pruned/archive"
    url = live.json("POST", "/api/v1/tickets", 201, json={"path": path}, headers=headers["read"])["url"]
    assert live.http.get(url).status_code == 200
    assert live.http.head(url).status_code == 200
    ticket = url.partition("?")[2]
    assert live.http.get(f"/api/v1/runs/small?{ticket}").status_code == 401
    assert live.http.get(f"{path}?{ticket}0").status_code == 401
    assert live.http.get(f"{path}?{ticket}&{ticket}").status_code == 401
    assert live.http.post(f"/api/v1/runs/small/jobs?{ticket}", json={"kind": "verify"}).status_code == 401


def test_two_steps_delete_a_run(root: Path) -> None:
    with serving(root, jobs=0) as live:
        first = live.json("POST", "/api/v1/runs/small/deletion")
        assert "deleted with all that it holds" in first["consequence"]
        live.json("DELETE", "/api/v1/runs/small", 403, headers={"Deletion-Token": first["token"] + "0"})
        live.json("DELETE", "/api/v1/runs/small", 204, headers={"Deletion-Token": first["token"]})
        assert live.json("GET", "/api/v1/runs")["runs"] == []
        live.json("GET", "/api/v1/runs/small", 404)
    assert not (root / "small").exists()
    assert list((root / ".streamsparse" / "trash").iterdir()) == []


def test_who_asks_too_often_waits(root: Path) -> None:
    limits = Limits(requests_per_second=0.5, burst=3)
    with serving(root, jobs=0, limits=limits) as live:
        statuses = [live.http.get("/api/v1/service").status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert int(live.http.get("/api/v1/service").headers["retry-after"]) >= 1
        assert live.http.get("/healthz").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(root: Path) -> None:
    with serving(root, jobs=0, limits=Limits(body_seconds=0.3)) as live:
        address = live.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=20) as connection:
            head = "POST /api/v1/runs/small/plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_every_answer_carries_the_security_headers(shared: Live) -> None:
    for path in ("/healthz", "/api/v1/runs", "/nothing", "/api/v1/runs/small/checkpoints/pruned/archive"):
        headers = shared.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    answer = shared.http.get("/nothing")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_report_is_served_in_a_sandbox(live: Live, root: Path) -> None:
    live.json("GET", "/api/v1/runs/small/report", 404)
    (root / "small" / "report").mkdir()
    (root / "small" / "report" / "report.html").write_text("<!doctype html><title>r</title>")
    found = live.http.get("/api/v1/runs/small/report")
    assert found.text.startswith("<!doctype html>")
    assert found.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert live.json("GET", "/api/v1/runs/small")["has_report"]


def test_the_log_holds_no_token_and_no_query(
    guarded: tuple[Live, dict[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, headers = guarded
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("streamsparse.service", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    log_as_json(stream)
    try:
        live.http.get("/api/v1/runs?ticket=secret-ticket", headers=headers["read"])
        deadline = time.monotonic() + 20
        while "\n" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)  # the line follows the answer
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
    text = stream.getvalue()
    assert headers["read"]["Authorization"].split()[1] not in text
    assert "secret-ticket" not in text
    line = json.loads(text.splitlines()[0])
    assert (line["path"], line["status"], line["caller"]) == ("/api/v1/runs", 200, "read")


def test_a_line_of_the_log_cannot_be_forged() -> None:
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO", "name": "x", "path": "/\u2028\n"})
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["path"] == "/\u2028\n"
