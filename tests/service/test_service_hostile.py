"""Hostile requests are refused with 4xx, leave nothing behind, and the service goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.hostile import HOSTILE, LIMITS, Hostile, send
from tests.service.live import Live, serving


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, solved_run: Path) -> Iterator[Live]:
    """A service whose ROOT holds links out of it."""
    place = tmp_path_factory.mktemp("attacked")
    root, outside = place / "root", place / "outside"
    shutil.copytree(solved_run, root / "small")
    shutil.copytree(solved_run, outside)
    (root / "link").symlink_to(outside)
    (root / "file").write_text("not a run")
    pruned = root / "small" / "checkpoints" / "pruned"
    (pruned / "link.safetensors").symlink_to("/etc/passwd")
    (pruned / ".hidden").write_text("secret")
    (root / "small" / "checkpoints" / "linked").symlink_to(outside / "checkpoints" / "pruned")
    with serving(root, jobs=0, allow_models=(), limits=LIMITS) as live:
        yield live


def test_the_list_is_long_enough_and_its_names_differ() -> None:
    assert len(HOSTILE) >= 60
    assert len({hostile.name for hostile in HOSTILE}) == len(HOSTILE)


def test_every_hostile_request_is_refused(attacked: Live) -> None:
    found = {hostile.name: send(attacked.url, hostile) for hostile in HOSTILE}
    assert {name: status for name, status in found.items() if not 400 <= status < 500} == {}
    assert [run["id"] for run in attacked.json("GET", "/api/v1/runs")["runs"]] == ["small"]
    assert attacked.json("GET", "/api/v1/jobs")["jobs"] == []
    root = attacked.service.root.directory
    assert root is not None
    assert list((root / ".streamsparse" / "uploads").iterdir()) == []
    assert sorted(path.name for path in root.parent.iterdir()) == ["outside", "root"]


def test_a_sound_request_of_the_same_form_is_taken(attacked: Live) -> None:
    """So that the others are refused for what they try, not for their form."""
    plan = Hostile(
        "plan", "POST", "/api/v1/runs/small/plan", {"Content-Type": "application/json"}, b'{"budget":"params=0.5"}'
    )
    assert send(attacked.url, plan) == 200
    archive = Hostile("archive", "GET", "/api/v1/runs/small/checkpoints/pruned/archive", {"Range": "bytes=0-9"})
    assert send(attacked.url, archive) == 206
