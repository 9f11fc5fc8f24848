"""Damage is found, named and never summed: flipped bits, lost or cut chunks, stale markers, mixed dtypes.

Every example works on a copy of one healthy run: captured in two shards, and summed in four folds.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import CorruptDataError, RunError, RunMismatchError, StageMissingError, StreamsparseError
from streamsparse.events import Advanced, Event
from streamsparse.store import Run
from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch
from streamsparse.store.statistics import Statistics
from streamsparse.verification import Problem, verify_run
from tests.small import (
    SmallNet,
    build,
    files_below,
    largest_difference,
    random_images,
    reference_folds,
    statistics_arrays,
    sums_arrays,
)

IMAGES, BATCH, FOLDS = 26, 4, 4
SUMS = AccumulateSettings(folds=FOLDS, product_dtype="float64")
EXAMPLES = settings(max_examples=10)


def dump(path: Path, dtype: str = "float32", batch: int = BATCH) -> Run:
    """A capture in two shards."""
    run = Run.at(path)
    for shard in range(2):
        wanted = CaptureSettings(dtype, batch_images=batch, shard=shard, shards=2)
        capture(build(SmallNet), random_images(IMAGES), run, settings=wanted)
    return run


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in float32 with statistics."""
    path = tmp_path_factory.mktemp("integrity") / "run"
    accumulate(dump(path), settings=SUMS, executor="serial")
    assert verify_run(Run.at(path)) == []
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in float16 and in batches of another size."""
    path = tmp_path_factory.mktemp("integrity") / "other"
    dump(path, "float16", 3)
    return path


@contextmanager
def copy_of(path: Path) -> Iterator[Path]:
    """A run of one's own to damage."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(path, Path(folder) / "run")
        yield Path(folder) / "run"


def chunks(path: Path, part: str) -> list[Path]:
    """Every stored chunk below a part of the run."""
    return sorted(file for file in (path / part).rglob("*") if file.is_file() and "/c/" in str(file))


def array_key(path: Path, chunk: Path) -> str:
    """Of the captured array or the record that a chunk belongs to."""
    parts = chunk.relative_to(path).parts
    return "/".join(parts[:5] if parts[0] == "activations" else parts[:3])


def assert_named(found: list[Problem], key: str) -> None:
    assert any(key in problem.key for problem in found), f"{key} not among {[problem.key for problem in found]}"
    assert all(problem.summary and problem.remedy and problem.got is not None for problem in found)


def assert_not_summed(path: Path, kind: type[StreamsparseError] = CorruptDataError) -> None:
    """A fresh accumulation stops with an error that says where, and leaves no statistics of the damaged layer."""
    shutil.rmtree(path / "statistics")
    shutil.rmtree(path / "partials", ignore_errors=True)
    with pytest.raises(kind) as raised:
        accumulate(Run.at(path), settings=SUMS, executor="serial")
    assert raised.value.where is not None
    assert raised.value.remedy is not None


def damage_chunk(file: Path, kind: str, at: float) -> None:
    """Flip a bit, cut the file, or delete it."""
    content = file.read_bytes()
    position = min(int(at * len(content) * 8), len(content) * 8 - 1)
    if kind == "flipped":
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
    elif kind == "truncated":
        file.write_bytes(content[: position // 8])
    else:
        file.unlink()


DAMAGES = st.sampled_from(["flipped", "truncated", "deleted"])
PLACES = st.floats(0, 1, exclude_max=True)


@EXAMPLES
@given(kind=DAMAGES, which=PLACES, at=PLACES)
def test_damaged_activations_are_named_and_not_summed(healthy: Path, kind: str, which: float, at: float) -> None:
    with copy_of(healthy) as path:
        files = chunks(path, "activations")
        chunk = files[int(which * len(files))]
        damage_chunk(chunk, kind, at)
        found = verify_run(Run.at(path))
        assert len(found) == 1
        assert_named(found, array_key(path, chunk))
        assert ", batch " in found[0].key
        assert_not_summed(path)


@EXAMPLES
@given(kind=DAMAGES, which=PLACES, at=PLACES)
def test_damaged_statistics_are_named_and_not_read(healthy: Path, kind: str, which: float, at: float) -> None:
    with copy_of(healthy) as path:
        files = chunks(path, "statistics")
        chunk = files[int(which * len(files))]
        damage_chunk(chunk, kind, at)
        key = array_key(path, chunk)
        assert_named(verify_run(Run.at(path)), key)
        with pytest.raises(CorruptDataError) as raised:
            Statistics(Run.at(path))[key.rpartition("/")[2]]
        assert key in str(raised.value.where)


def markers(path: Path) -> list[Path]:
    return sorted(path.rglob("commits/batch-*.json"))


@EXAMPLES
@given(which=PLACES)
def test_markers_of_another_plan_are_named_and_do_not_count(healthy: Path, other: Path, which: float) -> None:
    with copy_of(healthy) as path:
        marker = markers(path)[int(which * len(markers(path)))]
        shutil.copy(other / marker.relative_to(path), marker)
        found = verify_run(Run.at(path))
        assert_named(found, str(marker.relative_to(path)))
        assert "stale" in found[0].summary
        assert_not_summed(path, StageMissingError)


@EXAMPLES
@given(data=st.data())
def test_markers_under_another_name_never_count_a_batch_twice(healthy: Path, data: st.DataObject) -> None:
    """A marker that was copied or renamed within its own plan."""
    with copy_of(healthy) as path:
        shard = data.draw(st.sampled_from(sorted(path.rglob("commits"))))
        source, target = data.draw(st.permutations(sorted(shard.glob("batch-*.json"))).map(lambda order: order[:2]))
        beyond = data.draw(st.booleans())
        target = shard / "batch-00000099.json" if beyond else target
        shutil.copy(source, target)
        assert_named(verify_run(Run.at(path)), str(target.relative_to(path)))
        assert_not_summed(path, RunError)


@EXAMPLES
@given(field=st.sampled_from(["images", "first_image", "batch"]), which=PLACES, change=st.sampled_from([-1, 1, 4]))
def test_markers_that_name_other_images_are_refused(healthy: Path, field: str, which: float, change: int) -> None:
    with copy_of(healthy) as path:
        marker = markers(path)[int(which * len(markers(path)))]
        document = json.loads(marker.read_text())
        document[field] += change
        marker.write_text(json.dumps(document))
        assert_named(verify_run(Run.at(path)), str(marker.relative_to(path)))
        assert_not_summed(path, RunError)


def test_a_shard_that_was_copied_is_not_counted_twice(healthy: Path) -> None:
    with copy_of(healthy) as path:
        first, second = sorted((path / "activations/original").glob("shard-*"))
        shutil.rmtree(second)
        shutil.copytree(first, second)
        found = verify_run(Run.at(path))
        assert_named(found, f"{second.relative_to(path)}/plan.json")
        assert any("counted twice" in problem.summary for problem in found)
        assert_not_summed(path, RunError)


@pytest.mark.parametrize("array", ["conv2@0/input", "fc1@0/output"])
def test_an_array_of_another_dtype_is_named_and_not_summed(healthy: Path, other: Path, array: str) -> None:
    with copy_of(healthy) as path:
        own = next((path / "activations/original").glob(f"*/{array}"))
        shutil.rmtree(own)
        shutil.copytree(other / own.relative_to(path), own)
        found = verify_run(Run.at(path))
        assert_named(found, f"{own.relative_to(path)}/zarr.json")
        assert "float16" in str(found[0].got)
        assert_not_summed(path)


EDITS: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "shape": (("shape", 0), 5),
    "dtype": (("data_type",), "float16"),
    "whole numbers": (("data_type",), "int32"),
    "byte order": (("codecs", 0, "configuration", "endian"), "big"),
    "fill value": (("fill_value",), 0.0),
    "chunks": (("chunk_grid", "configuration", "chunk_shape", 0), 1),
    "chunk names": (("chunk_key_encoding", "configuration", "separator"), "."),
    "no codecs": (("codecs",), []),
    "no such codec": (("codecs", 1, "name"), "lost"),
    "another node": (("node_type",), "group"),
    "a list": (("chunk_grid",), [1]),
    "a number": (("codecs",), 3),
}


def edit(document: Path, path: tuple[str | int, ...], value: Any) -> None:
    """Change one entry of a JSON document."""
    content = json.loads(document.read_text())
    entry = content
    for step in path[:-1]:
        entry = entry[step]
    entry[path[-1]] = value
    document.write_text(json.dumps(content))


@pytest.mark.parametrize("change", EDITS)
def test_changed_metadata_of_activations_is_named_and_not_summed(healthy: Path, change: str) -> None:
    with copy_of(healthy) as path:
        document = next((path / "activations/original").glob("*/fc1@0/input/zarr.json"))
        edit(document, *EDITS[change])
        assert_named(verify_run(Run.at(path)), str(document.relative_to(path)))
        assert_not_summed(path)


@pytest.mark.parametrize("change", EDITS)
def test_changed_metadata_of_statistics_is_named(healthy: Path, change: str) -> None:
    with copy_of(healthy) as path:
        for document in (path / "statistics/original/fc1").rglob("gram/zarr.json"):
            edit(document, *EDITS[change])
        found = verify_run(Run.at(path))
        if found or change != "fill value":  # every chunk is there, so nothing would be filled
            assert_named(found, "statistics/original/fc1")
        else:
            before, after = (statistics_arrays(Run.at(each)) for each in (healthy, path))
            assert all(np.array_equal(after[key], before[key]) for key in before)


@EXAMPLES
@given(which=PLACES, at=PLACES)
def test_a_flipped_bit_of_metadata_changes_no_value_silently(healthy: Path, which: float, at: float) -> None:
    """Whatever still reads, reads as before, or the reader says what is wrong."""
    with copy_of(healthy) as path:
        files = sorted((path / "activations").rglob("input/zarr.json"))
        document = files[int(which * len(files))]
        damage_chunk(document, "flipped", at)
        layer = document.parts[-3].partition("@")[0]
        before, after = Run.at(healthy).reader(), Run.at(path).reader()
        key = str(document.parent.relative_to(path))
        refused = False
        for batch in after.batches():
            if batch.shard in key:
                found, where = read_or_refuse(after, batch, layer)
                if found is None:
                    refused = True
                    assert key in where
                else:
                    assert np.array_equal(found, before.read(batch, layer, 0, "input"))
        if refused:
            assert_named(verify_run(Run.at(path)), key)


def read_or_refuse(reader: ActivationReader, batch: Batch, layer: str) -> tuple[np.ndarray | None, str]:
    """The values, or where the reader says that the damage is."""
    try:
        return reader.read(batch, layer, 0, "input"), ""
    except StreamsparseError as error:
        return None, str(error.where)


@EXAMPLES
@given(which=PLACES, at=PLACES, kind=DAMAGES)
def test_verification_survives_any_damage_to_any_file(healthy: Path, which: float, at: float, kind: str) -> None:
    with copy_of(healthy) as path:
        files = sorted(path.rglob("*.json"))
        damage_chunk(files[int(which * len(files))], kind, at)
        if files[int(which * len(files))].name == "manifest.json":
            with suppress(RunError):  # no run any more, or one of another version
                verify_run(Run.at(path))
        else:
            assert all(problem.remedy for problem in verify_run(Run.at(path)))


class StopError(Exception):
    """Stands for whatever ends a capture."""


def stopping_after(batches: int) -> Any:
    """A listener that ends the capture after so many batches."""
    seen = 0

    def listen(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Advanced)
        if seen > batches:
            raise StopError

    return listen


def resume(path: Path, shard: int, batches: int) -> None:
    """Capture a shard, ended after so many batches."""
    wanted = CaptureSettings("float32", batch_images=BATCH, shard=shard, shards=2)
    with suppress(StopError):
        capture(build(SmallNet), random_images(IMAGES), path, settings=wanted, on_event=stopping_after(batches))


def reference(path: Path) -> dict[str, np.ndarray]:
    """Sums from float64 patches of an undisturbed capture, layer by layer."""
    reader = Run.at(path).reader()
    found: dict[str, np.ndarray] = {}
    for name, layer in reader.layers.items():
        inputs, outputs = (
            torch.from_numpy(np.concatenate([reader.read(b, name, 0, side) for b in reader.require_complete()]))
            for side in ("input", "output")
        )
        found |= sums_arrays(reference_folds(layer.geometry, inputs, outputs, FOLDS), name)
    return found


@settings(max_examples=8)
@given(data=st.data())
def test_batches_count_once_or_not_at_all_whatever_is_lost_and_resumed(healthy: Path, data: st.DataObject) -> None:
    """Markers vanish, with or without chunks of their batches; captures resume and stop, in any order."""
    with copy_of(healthy) as path:
        shutil.rmtree(path / "statistics")
        lost = data.draw(st.sets(st.sampled_from(markers(path)), min_size=1))
        for marker in lost:
            marker.unlink()
        if data.draw(st.booleans()):
            lost_batches = {(marker.parent.parent, int(marker.stem.rpartition("-")[2])) for marker in lost}
            for folder, index in lost_batches:  # one chunk per batch here, so the numbers are the same
                for chunk in folder.glob(f"*/*/c/{index}/**/*"):
                    if chunk.is_file():
                        chunk.unlink()
        for shard, batches in data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), max_size=3)):
            if not markers_missing(path):
                break
            with pytest.raises(StageMissingError):
                accumulate(Run.at(path), settings=SUMS, executor="serial")
            resume(path, shard, batches)
            assert_committed_once(Run.at(path).reader(), path, healthy)
        for shard in range(2):
            resume(path, shard, IMAGES)
        accumulate(Run.at(path), settings=SUMS, executor="serial")
        assert largest_difference(statistics_arrays(Run.at(path)), reference(healthy)) <= 1e-12
        assert verify_run(Run.at(path)) == []
        assert captured_files(path) == captured_files(healthy)


def markers_missing(path: Path) -> bool:
    return len(markers(path)) < sum(plan.batches for plan in Run.at(path).plans("original"))


def assert_committed_once(reader: ActivationReader, path: Path, whole: Path) -> None:
    """The batches that count are those with markers, no image is in two, and each reads as in the whole run."""
    batches = reader.batches()
    assert len(batches) == len(markers(path))
    images = [batch.first_image + number for batch in batches for number in range(batch.images)]
    assert len(images) == len(set(images))
    expected = Run.at(whole).reader()
    for batch in batches:
        found = reader.read(batch, "fc1", 0, "input")
        assert np.array_equal(found, expected.read(batch, "fc1", 0, "input"))


def captured_files(path: Path) -> dict[str, bytes]:
    """Plans, markers and chunks."""
    return {name: data for name, data in files_below(path / "activations").items() if not name.endswith(".partial")}


def test_shards_cut_another_way_are_named_and_not_summed(healthy: Path) -> None:
    with copy_of(healthy) as path:
        wanted = CaptureSettings("float32", batch_images=BATCH, shard=2, shards=3)
        capture(build(SmallNet), random_images(IMAGES), path, settings=wanted)
        found = verify_run(Run.at(path))
        assert any("different ways" in problem.summary for problem in found)
        assert_not_summed(path, RunMismatchError)
