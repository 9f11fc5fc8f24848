"""A service whose ROOT is in a bucket of a real S3 server: runs listed, uploaded, planned for, and downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streamsparse.client import Client
from streamsparse.errors import StorageError, StreamsparseError
from streamsparse.service.checkpoints import OpenObject
from streamsparse.service.jobs.database import open_database
from streamsparse.service.placing import place as put_in_place
from streamsparse.service.roots import Root
from streamsparse.service.settings import Settings
from streamsparse.store import Run
from streamsparse.store.bucket import Patience
from streamsparse.store.objects import stored_objects
from streamsparse.verification import verify_run
from tests.object_server import Place
from tests.service.live import Live, serving
from tests.service.test_service_uploads import packed
from tests.small import flip_bit


def _archive_is_that_of_a_disk(live: Live, shared: Live, path: str, run: Run) -> None:
    """The same bytes, tag and digests; resumed by a range; a file that changed meanwhile is never mixed in."""
    told = live.json("GET", path)["archive"]
    whole, local = live.http.get(f"{path}/archive"), shared.http.get(f"{path}/archive")
    assert (whole.status_code, whole.content) == (200, local.content)
    for header in ("etag", "repr-digest", "content-length", "accept-ranges"):
        assert whole.headers[header] == local.headers[header]
    assert (told["bytes"], told["sha256"]) == (len(whole.content), None)  # nobody had asked for it
    assert live.json("GET", path)["archive"]["sha256"] == whole.headers["etag"].strip('"')
    rest = live.http.get(f"{path}/archive", headers={"Range": "bytes=777-", "If-Range": whole.headers["etag"]})
    assert (rest.status_code, rest.content) == (206, whole.content[777:])
    assert live.http.head(f"{path}/archive").headers["content-length"] == str(len(whole.content))
    assert live.http.get(f"{path.removesuffix('pruned')}none/archive").status_code == 404

    weights = next(one for one in stored_objects(run, "checkpoints/pruned") if one.name == "model.safetensors")
    content = run.documents.read(weights.key)
    assert content is not None
    opened = OpenObject(run, weights)
    assert [opened.read_at(100, 0), opened.read_at(50, 100)] == [content[:100], content[100:150]]
    assert opened.read_at(7, 400) == content[400:407]
    assert opened.read_at(7, len(content)) == b""
    run.documents.write(weights.key, bytes(len(content)))
    with pytest.raises(StreamsparseError):
        opened.read_at(7, 200)
    run.documents.write(weights.key, content)


def test_a_root_in_a_bucket(place: Place, shared: Live, solved_run: Path, tmp_path: Path) -> None:
    run = Run.at(f"{place.url}/runs/small")
    for file in sorted(solved_run.rglob("*")):
        if file.is_file() and file.name != ".run.lock":
            run.documents.write(file.relative_to(solved_run).as_posix(), file.read_bytes())
    database = f"sqlite:///{tmp_path / 'jobs.db'}"
    with serving(f"{place.url}/runs", jobs=0, database=database) as live:
        assert [found["id"] for found in live.json("GET", "/api/v1/runs")["runs"]] == ["small"]
        assert live.json("GET", "/readyz") == {"status": "ready"}
        plan = live.json("POST", "/api/v1/runs/small/plan", json={"budget": "params=0.4"})
        assert plan["costs"]["parameters"] <= 0.4 * plan["original_costs"]["parameters"]
        path = "/api/v1/runs/small/checkpoints/pruned"
        assert live.json("GET", path)["files"][1]["name"] == "model.safetensors"
        answer = live.http.get(f"{path}/files/model.safetensors")
        assert answer.status_code == 307
        assert "Signature" in answer.headers["location"]
        assert live.http.get(f"{path}/files/manifest.json").status_code == 404
        _archive_is_that_of_a_disk(live, shared, path, run)
        with Client(live.url) as client:
            found = client.download("small", "pruned", tmp_path / "pruned")
        for name in ("config.json", "model.safetensors"):
            assert (found / name).read_bytes() == (solved_run / "checkpoints" / "pruned" / name).read_bytes()
        other = f"{place.url}/elsewhere/small"
        live.json("POST", "/api/v1/runs", 422, json={"id": "mine", "url": other})
        deep = f"{place.url}/runs/small"
        live.json("POST", "/api/v1/runs", 201, json={"id": "mine", "url": deep})
        token = live.json("POST", "/api/v1/runs/small/deletion")["token"]
        live.json("DELETE", "/api/v1/runs/small", 204, headers={"Deletion-Token": token})
        live.json("GET", "/api/v1/runs/small", 404)


def test_an_uploaded_archive_becomes_a_run_of_the_bucket(place: Place, solved_run: Path, tmp_path: Path) -> None:
    """Never listed before it is whole, and what a cut-off upload leaves is nobody's run and in nobody's way."""
    database, root = f"sqlite:///{tmp_path / 'jobs.db'}", f"{place.url}/runs"
    content = packed(solved_run, "gzip")
    path, sent = "/api/v1/runs/site-b/archive", {"Content-Type": "application/gzip"}
    seen: list[str] = []
    with serving(root, jobs=0, database=database) as live:
        assert "damaged" in live.json("PUT", path, 422, content=packed(_damaged(solved_run, tmp_path), "tar"),
                                      headers={"Content-Type": "application/x-tar"})["title"]  # fmt: skip
        assert live.json("GET", "/api/v1/runs")["runs"] == []

        left = Run.at(f"{root}/site-b")
        left.documents.write("statistics/original/conv2/old", b"of an upload that was killed")
        assert live.json("GET", "/api/v1/runs")["runs"] == []
        place.proxy.on_request = lambda line: seen.append(line) if line.startswith("PUT") else None
        shown = live.json("PUT", path, 201, content=content, headers=sent)
        place.proxy.on_request = lambda _: None
        assert {stage["stage"]: stage["state"] for stage in shown["stages"]}["accumulate"] == "complete"
        keys = [line.split()[1].rpartition("/runs/site-b/")[2] for line in seen if "/locks/" not in line]
        assert keys[-1] == "manifest.json"
        assert keys.count("manifest.json") == 1
        assert left.documents.read("statistics/original/conv2/old") is None
        assert verify_run(Run.at(f"{root}/site-b")) == []
        assert [run["id"] for run in live.json("GET", "/api/v1/runs")["runs"]] == ["site-b"]
        assert live.json("PUT", path, 409, content=content, headers=sent)["error"] == "NameTaken"
        Run.at(f"{root}/other").documents.write("activations/mine", b"of somebody else")
        assert live.json("PUT", "/api/v1/runs/other/archive", 409, content=content, headers=sent)
        with Run.at(f"{root}/busy").lock("begin"):
            answer = live.json("PUT", "/api/v1/runs/busy/archive", 409, content=content, headers=sent)
            assert answer["error"] == "RunLockedError"
        assert list(live.service.root.scratch().iterdir()) == []


def _damaged(run: Path, folder: Path) -> Path:
    """A copy with one bit flipped in an array of its statistics."""
    copy = folder / "damaged"
    shutil.copytree(run, copy)
    flip_bit(
        next(path for path in sorted((copy / "statistics").rglob("*")) if "c" in path.parts and path.is_file())
    )
    return copy


def test_an_upload_that_the_bucket_cuts_off_leaves_no_run(
    place: Place, solved_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamsparse.store.bucket.PATIENCE", Patience(retry_seconds=0.5))
    root, unpacked = f"{place.url}/runs", tmp_path / "unpacked"
    for name in ("manifest.json", "model", "statistics"):
        source = solved_run / name
        unpacked.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, unpacked / name)
    database = open_database(f"sqlite:///{tmp_path / 'jobs.db'}")
    found = Root(Settings(root, database="sqlite://"), database)
    written = 0

    def cut(line: str) -> None:
        nonlocal written
        written += line.startswith("PUT") and "/locks/" not in line
        if written == 5:
            place.proxy.cut()

    place.proxy.on_request = cut
    with pytest.raises(StorageError):
        put_in_place(found, "site-c", unpacked)
    place.proxy.on_request = lambda _: None
    place.proxy.restore()
    assert found.names() == []
    assert Run.at(f"{root}/site-c").documents.names("statistics") != []  # what it had no chance to clear
    leases = Run.at(f"{root}/site-c").documents.keys("locks")
    assert leases == [] or "exclusive" in leases[0]
    put_in_place(found, "site-c", unpacked)
    assert found.names() == ["site-c"]
    assert verify_run(found.find("site-c").run) == []
    database.dispose()
