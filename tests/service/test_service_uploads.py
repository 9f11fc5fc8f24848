"""Statistics archives become runs; registered runs are found; both only from where they may come."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.service.live import Live, serving
from tests.small import flip_bit

TAKEN = ("manifest.json", "model/weights.safetensors", "statistics")


def packed(run: Path, kind: str) -> bytes:
    """The statistics archive of a run."""
    files = [path for name in TAKEN for path in sorted([run / name, *(run / name).rglob("*")]) if path.is_file()]
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
            for path in files:
                opened.write(path, path.relative_to(run))
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "gzip" else "w") as tar:
            for path in files:
                tar.add(path, path.relative_to(run))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "media_type"), [("x-tar", "x-tar"), ("gzip", "gzip"), ("zip", "zip"), ("zip", "octet-stream")]
)
def test_an_archive_becomes_a_run(live: Live, root: Path, kind: str, media_type: str) -> None:
    headers = {"Content-Type": f"application/{media_type}"}
    content = packed(root / "small", kind)
    shown = live.json("PUT", "/api/v1/runs/site-b/archive", 201, content=content, headers=headers)
    assert {stage["stage"]: stage["state"] for stage in shown["stages"]}["accumulate"] == "complete"
    assert live.json("PUT", "/api/v1/runs/site-b/archive", 409, content=content, headers=headers)
    assert list((root / ".streamsparse" / "uploads").iterdir()) == []


def test_a_damaged_archive_is_no_run(live: Live, root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root / "small", copy)
    chunk = next(path for path in sorted((copy / "statistics").rglob("c/*")) if path.is_file() or path.is_dir())
    flip_bit(next(path for path in sorted(chunk.rglob("*")) if path.is_file()))
    headers = {"Content-Type": "application/x-tar"}
    answer = live.http.put("/api/v1/runs/mine/archive", content=packed(copy, "x-tar"), headers=headers)
    assert answer.status_code == 422
    assert "damaged" in answer.json()["title"]
    assert [run["id"] for run in live.json("GET", "/api/v1/runs")["runs"]] == ["small"]


def test_a_run_is_registered_from_inside_root_or_an_allowed_prefix(
    root: Path, solved_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(solved_run, root / "teams" / "a" / "deep")
    shutil.copytree(solved_run, tmp_path / "archive" / "old")
    with serving(root, jobs=0, allow_urls=(str(tmp_path / "archive"),)) as live:
        live.json("POST", "/api/v1/runs", 201, json={"id": "deep", "url": "teams/a/deep"})
        live.json("POST", "/api/v1/runs", 201, json={"id": "old", "url": str(tmp_path / "archive" / "old")})
        live.json("POST", "/api/v1/runs", 409, json={"id": "deep", "url": "teams/a/deep"})
        live.json("POST", "/api/v1/runs", 404, json={"id": "new", "url": "teams/a/nothing"})
        live.json("POST", "/api/v1/runs", 422, json={"id": "new", "url": str(solved_run)})
        listed = live.json("GET", "/api/v1/runs")["runs"]
        assert [(run["id"], run["registered"]) for run in listed] == [
            ("deep", True), ("old", True), ("small", False),
        ]  # fmt: skip
        plan = live.json("POST", "/api/v1/runs/deep/plan", json={"budget": "params=0.5"})
        assert plan["sparsity"] >= 0.5
        token = live.json("POST", "/api/v1/runs/old/deletion")["token"]
        live.json("DELETE", "/api/v1/runs/old", 204, headers={"Deletion-Token": token})
        live.json("GET", "/api/v1/runs/old", 404)
    assert (tmp_path / "archive" / "old" / "manifest.json").is_file()  # its files stay


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(live: Live, root: Path) -> None:
    (root / "broken").mkdir()
    (root / "broken" / "manifest.json").write_text('{"schema": 99}')
    listed = {run["id"]: run for run in live.json("GET", "/api/v1/runs")["runs"]}
    assert listed["broken"]["state"] == "unreadable"
    assert listed["broken"]["problem"]["error"] == "SchemaVersionError"
    assert str(root) not in str(listed)
    assert live.json("GET", "/api/v1/runs/broken", 409)["where"].startswith("ROOT/")
