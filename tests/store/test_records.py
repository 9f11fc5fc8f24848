"""Records and documents: whole or nothing, and damage is found and named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsparse.errors import CorruptDataError, StorageError, StreamsparseError
from streamsparse.store import Run, layout
from streamsparse.store.records import Records
from tests.small import DAMAGE

ARRAYS = {
    "zeros": np.zeros((3, 4)),
    "values": np.arange(24, dtype=np.float64).reshape(2, 3, 4),
    "flags": np.array([True, False]),
    "numbers": np.array([1, 2, 3]),
}


def written(path: Path) -> Run:
    run = Run.at(path)
    run.records.write("some/key", {"about": "it"}, ARRAYS)
    return run


def test_a_record_comes_back_as_it_went_in(tmp_path: Path) -> None:
    record = written(tmp_path).records.read("some/key")
    assert record is not None
    assert record.description == {"about": "it"}
    assert record.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(record.arrays[name], array)
        assert record.arrays[name].dtype == array.dtype


def test_a_record_without_its_document_is_nothing(tmp_path: Path) -> None:
    run = written(tmp_path)
    (tmp_path / "some/key/record.json").unlink()
    assert run.records.read("some/key") is None
    assert run.records.description("some/key") is None
    assert not run.records.exists("some/key")


def test_a_write_that_fails_half_way_changes_nothing(tmp_path: Path) -> None:
    """The second array cannot be converted: the record that was there still is."""
    run = written(tmp_path)
    before = run.records.read("some/key")
    assert before is not None
    with pytest.raises(StreamsparseError):
        run.records.write("some/key", {}, {"first": np.ones(3), "second": np.array(["text", object()])})
    after = run.records.read("some/key")
    assert after is not None
    assert after.arrays.keys() == before.arrays.keys()
    run.records.write("some/key", {}, {"first": np.ones(3)})
    record = run.records.read("some/key")
    assert record is not None
    assert list(record.arrays) == ["first"]
    assert len(generations(tmp_path)) == 1  # what was given up is dropped


def generations(path: Path) -> list[Path]:
    """Everything that was written under the key."""
    return [folder for folder in (path / "some/key").iterdir() if folder.is_dir()]


def test_a_draft_counts_from_its_commit_on(tmp_path: Path) -> None:
    """Parts come from several processes."""
    run = written(tmp_path)
    for _ in range(2):  # as if from two processes
        run.records.draft("some/key", "0123456789abcdef").create("halves", (2, 3), np.float64, (1, 3))
    draft = run.records.draft("some/key", "0123456789abcdef")
    draft.put("halves", np.ones(3), (0,))
    draft.put("halves", np.zeros(3), (1,))
    other = run.records.draft("some/key")
    other.create("half", (3,), np.float64)
    assert run.records.read("some/key").arrays.keys() == ARRAYS.keys()  # type: ignore[union-attr]
    draft.commit(["halves"], {"about": "new"})
    record = run.records.read("some/key")
    assert record is not None
    assert record.description == {"about": "new"}
    np.testing.assert_array_equal(record.arrays["halves"], [[1, 1, 1], [0, 0, 0]])
    assert len(generations(tmp_path)) == 1  # the other was given up


@pytest.mark.parametrize("array", ["values", "zeros"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_chunks_are_found_and_named(tmp_path: Path, array: str, damage: str) -> None:
    run = written(tmp_path)
    (generation,) = generations(tmp_path)
    DAMAGE[damage](next(file for file in (generation / array / "c").rglob("*") if file.is_file()))
    with pytest.raises(CorruptDataError) as raised:
        run.records.read("some/key")
    assert raised.value.where == f"some/key/{array}"
    assert raised.value.remedy is not None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("record.json", b"{"),
        ("record.json", b"[1]"),
        ("record.json", b"{}"),
        ("record.json", b'{"arrays": 3}'),
        ("values/zarr.json", b"{"),
        ("values/zarr.json", b"{}"),
        ("values/zarr.json", b'{"zarr_format": 3, "node_type": "array"}'),
        ("values/zarr.json", None),
    ],
)
def test_damaged_metadata_is_found_and_named(tmp_path: Path, file: str, content: bytes | None) -> None:
    run = written(tmp_path)
    (folder,) = generations(tmp_path) if "/" in file else (tmp_path / "some/key",)
    path = folder / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CorruptDataError) as raised:
        run.records.read("some/key")
    assert str(raised.value.where).startswith("some/key")


def after_a_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> list[int]:
    """Call `act` with 0, 1, ... each time after record.json was read, before its parts are; lists these."""
    looks: list[int] = []
    original = Records.description

    def look(self: Records, key: str) -> object:
        found = original(self, key)
        looks.append(len(looks))
        act(looks[-1])
        return found

    monkeypatch.setattr(Records, "description", look)
    return looks


@pytest.mark.parametrize("commits", [1, 4])
@pytest.mark.parametrize("only", [None, ["values"]])
def test_a_record_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int, only: list[str] | None
) -> None:
    run = written(tmp_path)

    def replace(look: int) -> None:
        if look < commits:
            arrays = {name: array + look for name, array in ARRAYS.items()}
            Run.at(tmp_path).records.write("some/key", {"commit": look}, arrays)

    looks = after_a_look(monkeypatch, replace)
    record = run.records.read("some/key", only)
    assert record is not None
    assert record.description == {"commit": commits - 1}
    assert list(record.arrays) == (only or sorted(ARRAYS))
    for name, array in record.arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name] + (commits - 1))
    assert len(looks) == commits + 1


@pytest.mark.parametrize("step", ["_metadata", "_values"])
def test_a_record_that_is_replaced_before_the_last_of_its_parts_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run, original = written(tmp_path), getattr(Records, step)
    calls = 0

    def replace_first(self: Records, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == (3 if step == "_metadata" else 1):
            Run.at(tmp_path).records.write("some/key", {"about": "new"}, ARRAYS)
        return original(self, *args)

    monkeypatch.setattr(Records, step, replace_first)
    record = run.records.read("some/key")
    assert record is not None
    assert record.description == {"about": "new"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(record.arrays[name], array)


def test_a_record_that_is_deleted_while_it_is_read_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = written(tmp_path)
    after_a_look(monkeypatch, lambda _: Run.at(tmp_path).documents.delete("some/key"))
    assert run.records.read("some/key") is None


def test_a_record_that_never_stays_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path)
    looks = after_a_look(monkeypatch, lambda _: Run.at(tmp_path).records.write("some/key", {}, ARRAYS))
    with pytest.raises(CorruptDataError):
        run.records.read("some/key")
    assert len(looks) < 50


@pytest.mark.parametrize("lost", ["c", "zarr.json"])
def test_what_is_lost_is_looked_for_once_more_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run = written(tmp_path)
    (generation,) = generations(tmp_path)
    Run.at(generation / "values").documents.delete_key(lost)
    looks = after_a_look(monkeypatch, lambda _: None)
    with pytest.raises(CorruptDataError, match="missing") as raised:
        run.records.read("some/key")
    assert raised.value.where == "some/key/values"
    assert looks == [0, 1]


@pytest.fixture
def deleted_while_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Directories of the run that vanish when they are about to be listed, their names having been read."""
    doomed: list[Path] = []
    original = os.scandir

    def scandir(path: Any = ".") -> Any:
        if doomed and not isinstance(path, int) and Path(path) == doomed[0]:
            shutil.rmtree(doomed.pop())
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return doomed


def test_a_part_that_is_deleted_while_it_is_looked_for_is_missing(
    tmp_path: Path, deleted_while_listed: list[Path]
) -> None:
    run = Run.at(tmp_path)
    run.records.write("some/key", {}, {"values": np.arange(6.0).reshape(2, 3)})
    (generation,) = generations(tmp_path)
    deleted_while_listed.append(generation / "values" / "c" / "0")
    with pytest.raises(CorruptDataError, match="missing"):
        run.records.read("some/key")
    assert not deleted_while_listed


def test_what_is_deleted_while_it_is_listed_is_not_there(tmp_path: Path, deleted_while_listed: list[Path]) -> None:
    run = written(tmp_path)
    Run.at(tmp_path).records.write("other/key", {}, ARRAYS)
    deleted_while_listed.append(tmp_path / "other" / "key")
    assert not any(key.startswith("other/key/") for key in run.documents.keys(""))
    assert not deleted_while_listed


def test_a_store_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path)

    def fail(*_: object) -> None:
        raise StorageError("The store could not be read or written.")

    monkeypatch.setattr(Records, "_values", fail)
    with pytest.raises(StorageError):
        run.records.read("some/key")


@given(st.text(max_size=30))
def test_any_name_is_one_component_of_a_key(name: str) -> None:
    name = name.encode("utf-8", "replace").decode()
    component = layout.part(name)
    assert layout.name_of(component) == name
    assert "/" not in component
    assert component.strip(".")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "ä ö", "layer.0.conv", "%2E", "x@0"])
def test_odd_names_stay_below_their_directory(tmp_path: Path, name: str) -> None:
    run = Run.at(tmp_path)
    key = layout.front_key(name)
    run.records.write(key, {}, {"values": np.ones(2)})
    assert run.records.read(key) is not None
    assert list((tmp_path / "solution/fronts").glob("*/record.json")) != []


def test_looking_creates_nothing(tmp_path: Path) -> None:
    run = Run.at(tmp_path / "nothing")
    assert not run.exists
    assert run.documents.names("checkpoints") == []
    assert run.documents.size_bytes("activations") == 0
    assert run.plans("original") == []
    assert list(tmp_path.iterdir()) == []
