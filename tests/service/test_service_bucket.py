"""A service whose ROOT is in a bucket of a real S3 server: listed, planned for, and downloaded by signed URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsparse.client import Client
from streamsparse.errors import StreamsparseError
from streamsparse.service.checkpoints import OpenObject
from streamsparse.store import Run
from streamsparse.store.objects import stored_objects
from tests.object_server import Place
from tests.service.live import Live, serving


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
