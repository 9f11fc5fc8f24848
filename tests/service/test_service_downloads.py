"""Downloads: ranges, tags, digests, curl, and the client that resumes."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

import streamsparse as ss
from streamsparse.client import Client
from streamsparse.errors import BudgetError, CheckpointError, RunNotFoundError, UsageError
from tests.service.live import Live, serving
from tests.small import SmallNet, build

CHECKPOINT = "/api/v1/runs/small/checkpoints/pruned"
WEIGHTS = f"{CHECKPOINT}/files/model.safetensors"


def test_files_have_ranges_tags_and_digests(shared: Live) -> None:
    whole = shared.http.get(WEIGHTS)
    content = whole.content
    sha256 = hashlib.sha256(content)
    assert whole.headers["etag"] == f'"{sha256.hexdigest()}"'
    assert whole.headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
    assert whole.headers["content-digest"] == whole.headers["repr-digest"]
    assert whole.headers["accept-ranges"] == "bytes"
    shown = shared.json("GET", CHECKPOINT)
    assert {file["name"]: file["sha256"] for file in shown["files"]}["model.safetensors"] == sha256.hexdigest()

    part = shared.http.get(WEIGHTS, headers={"Range": "bytes=10-29"})
    assert (part.status_code, part.content) == (206, content[10:30])
    assert part.headers["content-range"] == f"bytes 10-29/{len(content)}"
    assert shared.http.get(WEIGHTS, headers={"Range": "bytes=-7"}).content == content[-7:]
    tagged = {"Range": "bytes=5-", "If-Range": whole.headers["etag"]}
    assert shared.http.get(WEIGHTS, headers=tagged).content == content[5:]
    changed = shared.http.get(WEIGHTS, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, content)
    several = shared.http.get(WEIGHTS, headers={"Range": "bytes=0-1,4-5"})
    assert (several.status_code, several.content) == (200, content)
    beyond = shared.http.get(WEIGHTS, headers={"Range": f"bytes={len(content)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(content)}")
    known = shared.http.get(WEIGHTS, headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = shared.http.head(WEIGHTS)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(content)), b"")


def test_an_archive_is_the_same_every_time_and_opens(shared: Live) -> None:
    path = f"{CHECKPOINT}/archive"
    first, second = shared.http.get(path), shared.http.get(path)
    assert first.content == second.content
    assert first.headers["etag"] == f'"{hashlib.sha256(first.content).hexdigest()}"'
    told = shared.json("GET", CHECKPOINT)["archive"]
    assert (told["bytes"], told["sha256"]) == (len(first.content), first.headers["etag"].strip('"'))
    assert shared.http.get(path, headers={"Range": "bytes=500-1600"}).content == first.content[500:1601]
    with tarfile.open(fileobj=io.BytesIO(first.content)) as opened:
        assert opened.getnames() == ["config.json", "model.safetensors"]
        weights = opened.extractfile("model.safetensors")
        assert weights is not None
        assert weights.read() == shared.http.get(WEIGHTS).content


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_resumes(shared: Live, tmp_path: Path) -> None:
    content = shared.http.get(f"{CHECKPOINT}/archive").content
    target = tmp_path / "pruned.tar"
    target.write_bytes(content[:777])
    command = ["curl", "-sS", "-f", "-C", "-", "-o", str(target), f"{shared.url}{CHECKPOINT}/archive"]
    subprocess.run(command, check=True, timeout=60)
    assert target.read_bytes() == content


def test_the_client_downloads_and_resumes(shared: Live, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Client(shared.url) as client:
        content = shared.http.get(WEIGHTS)
        partial = tmp_path / ".pruned.download"
        partial.mkdir()
        (partial / "model.safetensors.part").write_bytes(content.content[:1000])
        (partial / "model.safetensors.etag").write_text(content.headers["etag"])
        found = client.download("small", "pruned", tmp_path / "pruned", on_bytes=lambda *now: seen.append(now))
        assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
        assert seen[-1][0] == seen[-1][1]
        assert not partial.exists()
        ss.load(found, build(SmallNet))
        with pytest.raises(CheckpointError, match="exists"):
            client.download("small", "pruned", tmp_path / "pruned")
        partial = tmp_path / ".again.download"
        partial.mkdir()
        (partial / "model.safetensors.part").write_bytes(b"\0" * 1000)  # not what was sent
        (partial / "model.safetensors.etag").write_text(content.headers["etag"])
        with pytest.raises(CheckpointError, match="not what the service sent"):
            client.download("small", "pruned", tmp_path / "again")
        assert client.download("small", "pruned", tmp_path / "again").is_dir()  # from the start


def test_the_client_plans_and_raises_the_errors_of_the_library(shared: Live) -> None:
    with Client(shared.url) as client:
        assert [run["id"] for run in client.runs()] == ["small"]
        plan = client.plan("small", "params=0.35", round_to=2)
        assert plan["costs"]["parameters"] <= 0.35 * plan["original_costs"]["parameters"]
        assert all(group["kept"] % 2 == 0 or group["kept"] == group["size"] for group in plan["groups"])
        front = client.front("small", points=4)
        assert len(front["points"]) == 4
        with pytest.raises(BudgetError, match="No architecture"):
            client.plan("small", "params=0.0001")
        with pytest.raises(UsageError, match="no run of this name"):
            client.run("none")
        assert client.jobs() == []
    with pytest.raises(UsageError, match="URL"):
        Client("localhost")
    assert issubclass(RunNotFoundError, UsageError) is False


def test_the_client_waits_and_cancels(root: Path) -> None:
    with serving(root, jobs=0) as live, Client(live.url) as client:
        job = client.submit("small", "verify", key="once")
        assert client.submit("small", "verify", key="once")["id"] == job["id"]
        assert client.cancel(job["id"])["state"] == "cancelled"
        heard: list[str] = []
        from streamsparse.errors import ResourceError

        with pytest.raises(ResourceError, match="cancelled"):
            client.wait(job["id"], lambda event: heard.append(event["type"]))
        assert heard == ["state", "state"]
        assert client.retry(job["id"])["state"] == "queued"
