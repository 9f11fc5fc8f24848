"""A service whose ROOT is in a bucket of a real S3 server: listed, planned for, and downloaded by signed URLs."""

from __future__ import annotations

from pathlib import Path

from streamsparse.client import Client
from streamsparse.store import Run
from tests.object_server import Place
from tests.service.live import serving


def test_a_root_in_a_bucket(place: Place, solved_run: Path, tmp_path: Path) -> None:
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
        assert live.http.get(f"{path}/archive").status_code == 409
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
