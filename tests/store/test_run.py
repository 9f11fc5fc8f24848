"""The run: its manifest, weights, checkpoints and solution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamsparse.errors import (
    CorruptDataError,
    RunError,
    RunNotFoundError,
    SchemaVersionError,
    StageMissingError,
    StorageError,
    UsageError,
)
from streamsparse.store import Run, layout
from streamsparse.store.solution import commit_solution, read_solution, read_weights
from streamsparse.types import Costs, LayerError, PrunePlan, Solution
from tests.small import files_below

MANIFEST = {"model": {"spec": None}}


def solution(kept: int, error: float = 0.125) -> Solution:
    plan = PrunePlan(
        {"conv": tuple(range(kept))}, {"conv": 6}, {"conv": error}, {"conv": "entropic"}, Costs(10, 20, 40),
        Costs(20, 30, 80), None,
    )  # fmt: skip
    return Solution(plan, (LayerError("next", error, error * 2, 1e-8),), "independent")


def weights(value: float) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    return {"next": (np.full((2, 3), value), np.full(2, value))}


def test_opening_and_reading_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError) as raised:
        Run.at(tmp_path / "no").manifest()
    assert raised.value.got == "nothing"
    with pytest.raises(RunNotFoundError) as raised:
        Run.at(tmp_path).manifest()
    assert "without one" in str(raised.value.got)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("schema", [0, 1, 3, "2", None])
def test_another_schema_version_is_refused(tmp_path: Path, schema: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": schema}))
    with pytest.raises(SchemaVersionError) as raised:
        Run.at(tmp_path).manifest()
    assert raised.value.got == f"layout version {schema!r}"


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"\xff\xfe"])
def test_an_unreadable_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptDataError) as raised:
        Run.at(tmp_path).manifest()
    assert raised.value.where == "manifest.json"


def test_a_run_begins_once(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    first = run.begin({**MANIFEST, "note": 1}, b"weights")
    assert run.begin({**MANIFEST, "note": 2}, b"other") == first
    assert run.weights() == b"weights"


def test_weights_that_changed_on_disk_are_refused(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    run.begin(MANIFEST, b"weights")
    (tmp_path / layout.WEIGHTS).write_bytes(b"weightt")
    with pytest.raises(CorruptDataError, match="damaged"):
        run.weights()
    (tmp_path / layout.WEIGHTS).unlink()
    with pytest.raises(CorruptDataError, match="missing"):
        run.weights()


def test_checkpoints_are_replaced_whole_and_leftovers_ignored(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    run.write_checkpoint("small", {"config.json": b"{}", "model.safetensors": b"1"}, last="config.json")
    (tmp_path / "checkpoints/small/model.0123.partial").write_bytes(b"half")
    assert run.read_checkpoint("small") == {"config.json": b"{}", "model.safetensors": b"1"}
    with pytest.raises(StageMissingError) as raised:
        run.read_checkpoint("large")
    assert "small" in str(raised.value.expected)


def test_a_solution_comes_back(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    with pytest.raises(StageMissingError):
        read_solution(run)
    commit_solution(run, solution(3), weights(1.5))
    assert read_solution(run) == solution(3)
    found = read_weights(run, solution(3))
    np.testing.assert_array_equal(found["next"][0], np.full((2, 3), 1.5))
    np.testing.assert_array_equal(found["next"][1], np.full(2, 1.5))


@pytest.mark.parametrize("kept", [3, 4])
def test_a_commit_that_dies_anywhere_leaves_the_solution_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Fail at the n-th write, for every n, and read what is there."""
    run = Run.at(tmp_path)
    commit_solution(run, solution(3), weights(1.5))
    store = type(run.store)
    original = store.set
    done = False
    for survive in range(50):
        calls = 0

        async def dying(self: object, *args: object, survive: int = survive) -> None:
            nonlocal calls
            calls += 1
            if calls > survive:
                raise OSError(28, "No space left on device")
            await original(self, *args)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(store, "set", dying)
            try:
                commit_solution(run, solution(kept), weights(2.5))
                done = True
            except StorageError:
                pass
        expected = 2.5 if done else 1.5
        found = read_solution(run)
        assert found == solution(kept if done else 3)
        np.testing.assert_array_equal(read_weights(run, found)["next"][0], np.full((2, 3), expected))
        if done:
            break
    assert done
    assert survive > 3
    assert len(list((tmp_path / "solution/weights").glob("*/next"))) == 1


def test_an_unreadable_solution_is_named(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    commit_solution(run, solution(3), weights(1.5))
    (tmp_path / layout.SOLUTION).write_text("{}")
    with pytest.raises(CorruptDataError) as raised:
        read_solution(run)
    assert raised.value.where == layout.SOLUTION


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/thesis.tex").write_text("years of work")
    before = files_below(tmp_path)
    with pytest.raises(RunError) as raised:
        Run.at(tmp_path).require_own()
    assert raised.value.got == "model"
    (tmp_path / "manifest.json").write_text('{"name": "a web application"}')
    with pytest.raises(RunError):
        Run.at(tmp_path).require_own()
    (tmp_path / "manifest.json").unlink()
    assert files_below(tmp_path) == before


def test_an_empty_directory_and_a_killed_beginning_are_ours(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    run.require_own()
    with run.lock():
        run.documents.write(layout.WEIGHTS, b"half a beginning")
    run.require_own()
    run.begin(MANIFEST, b"weights")
    run.require_own()


@pytest.mark.parametrize("url", ["http://host/run", "gs://bucket", "az://bucket/run"])
def test_unsupported_urls(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        Run.at(url)
    assert raised.value.got == url


def test_file_urls_and_paths_are_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    Run.at(directory).begin(MANIFEST, b"")
    assert Run.at(directory.as_uri()).manifest()["model"]["spec"] is None
