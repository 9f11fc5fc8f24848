"""Activations on disk: batches, chunks, shards, codecs, and damage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamsparse.errors import (
    CorruptDataError,
    DataError,
    RunMismatchError,
    StageMissingError,
    UsageError,
)
from streamsparse.store import Run
from streamsparse.store.activations import ActivationReader
from streamsparse.store.codecs import EXAMPLES, compressors
from streamsparse.store.stream import CHUNK_BYTES, CapturedLayer, StreamPlan, plan_from_json
from tests.small import DAMAGE, geometry_of

LAYER = replace(geometry_of(nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 6, 6)), layer="a/odd näme.0")
PLAN = StreamPlan("original", 0, 1, 0, 10, 4, "float16", "zstd:1", (CapturedLayer(LAYER, calls=2),))
SIDES = ("input", "output")


def tensors(plan: StreamPlan, batch: int) -> dict[tuple[str, int, str], np.ndarray]:
    random = np.random.default_rng([plan.first_image, batch])
    layer = plan.layers[0]
    return {
        (LAYER.layer, call, side): random.standard_normal((len(plan.span(batch)), *layer.shape(side))).astype(
            plan.dtype
        )
        for call in range(layer.calls)
        for side in SIDES
    }


def write_all(run: Run, plan: StreamPlan) -> None:
    writer = run.writer(plan)
    for batch in range(plan.batches):
        writer.write(batch, tensors(plan, batch), f"digest {batch}")


def read_all(run: Run) -> None:
    reader = run.reader()
    for batch in reader.require_complete():
        for call in range(2):
            for side in SIDES:
                found = reader.read(batch, LAYER.layer, call, side)
                expected = tensors(reader.plans[batch.shard], batch.index)[LAYER.layer, call, side]
                np.testing.assert_array_equal(found, expected)
                assert found.dtype == expected.dtype


@pytest.mark.parametrize("codec", EXAMPLES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path: Path, codec: str, dtype: str) -> None:
    run = Run.at(tmp_path)
    write_all(run, replace(PLAN, codec=codec, dtype=dtype))
    read_all(Run.at(tmp_path))


def test_memory_holds_a_stream_too() -> None:
    run = Run.at("memory://")
    write_all(run, PLAN)
    read_all(run)


def test_shards_are_read_in_the_order_of_their_images(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    write_all(run, replace(PLAN, shard=1, shards=2, first_image=10, images=7))
    with pytest.raises(StageMissingError, match="has not finished"):
        run.reader().require_complete()
    write_all(run, replace(PLAN, shard=0, shards=2))
    read_all(run)
    assert [batch.first_image for batch in run.reader().batches()] == [0, 4, 8, 10, 14]


def test_shards_cut_differently_are_refused(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    write_all(run, replace(PLAN, shard=0, shards=2))
    write_all(run, replace(PLAN, shard=1, shards=3))
    with pytest.raises(RunMismatchError, match="different ways"):
        run.reader().require_complete()


def test_a_batch_without_its_marker_does_not_count(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    write_all(run, PLAN)
    next(tmp_path.rglob("batch-00000001.json")).unlink()
    assert sorted(run.writer(PLAN).committed()) == [0, 2]
    with pytest.raises(StageMissingError) as raised:
        run.reader().require_complete()
    assert "3 batches" in str(raised.value.expected)
    assert "2 batches" in str(raised.value.got)


def test_markers_of_another_plan_and_foreign_files_do_not_count(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    write_all(run, PLAN)
    marker = next(tmp_path.rglob("batch-00000001.json"))
    marker.write_text(marker.read_text().replace(PLAN.digest, "0" * 64))
    (marker.parent / "batch-00000002.0123.partial").write_bytes(b"half")
    (marker.parent / "notes.txt").write_text("hello")
    assert [batch.index for batch in run.reader().batches()] == [0, 2]


def test_an_incomplete_marker_is_named(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    write_all(run, PLAN)
    marker = next(tmp_path.rglob("batch-00000001.json"))
    marker.write_text(f'{{"plan": "{PLAN.digest}"}}')
    with pytest.raises(CorruptDataError) as raised:
        run.reader().batches()
    assert "batch-00000001.json" in str(raised.value.where)


@pytest.mark.parametrize("codec", ["zstd:1", "none"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_chunks_are_found_and_named(tmp_path: Path, codec: str, damage: str) -> None:
    run = Run.at(tmp_path)
    write_all(run, replace(PLAN, codec=codec))
    chunk = next(tmp_path.rglob("*@1/input/c/1/0/0/0"))
    DAMAGE[damage](chunk)
    reader = run.reader()
    for batch in reader.require_complete():
        reader.read(batch, LAYER.layer, 0, "input")
        if batch.index == 1:
            with pytest.raises(CorruptDataError) as raised:
                reader.read(batch, LAYER.layer, 1, "input")
            assert "@1/input, batch 1 (images 4 to 7)" in str(raised.value.where)
            assert raised.value.remedy is not None
        else:
            reader.read(batch, LAYER.layer, 1, "input")


@pytest.mark.parametrize("content", [None, b"{", b"{}"])
def test_damaged_array_metadata_is_named(tmp_path: Path, content: bytes | None) -> None:
    run = Run.at(tmp_path)
    write_all(run, PLAN)
    file = next(tmp_path.rglob("*@1/input/zarr.json"))
    file.unlink() if content is None else file.write_bytes(content)
    reader = run.reader()
    with pytest.raises(CorruptDataError) as raised:
        reader.read(reader.batches()[0], LAYER.layer, 1, "input")
    assert "@1/input" in str(raised.value.where)


def test_other_settings_may_not_join(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    run.writer(PLAN)
    with pytest.raises(RunMismatchError) as raised:
        run.writer(replace(PLAN, dtype="float32", batch_images=5))
    assert "dtype=float16" in str(raised.value.expected)
    assert "dtype=float32" in str(raised.value.got)


@pytest.mark.parametrize("shape", [(4, 2, 1, 1), (1, 2, 6, 6), (4, 2, 5, 5)])
def test_values_of_another_shape_are_not_broadcast(tmp_path: Path, shape: tuple[int, ...]) -> None:
    writer = Run.at(tmp_path).writer(PLAN)
    with pytest.raises(DataError) as raised:
        writer.write(0, tensors(PLAN, 0) | {(LAYER.layer, 1, "input"): np.ones(shape, np.float16)}, "")
    assert raised.value.expected == "(4, 2, 6, 6)"
    assert not list(tmp_path.rglob("*/c/0/*"))
    assert writer.committed() == {}


def test_a_stream_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StageMissingError, match="stream 'other'"):
        ActivationReader(Run.at(tmp_path).store, "other")


@pytest.mark.parametrize("codec", ["zstd:99999", "zstd:x", "lzma", "blosc:nothing", "none:1", ""])
def test_unknown_codecs_are_refused(codec: str) -> None:
    with pytest.raises(UsageError) as raised:
        compressors(codec)
    assert raised.value.got == codec


@given(st.integers(1, 400), st.integers(1, 600), st.integers(1, 70))
def test_chunks_divide_batches_and_are_bounded(batch: int, channels: int, side: int) -> None:
    shape = (channels, side, side)
    plan = replace(PLAN, batch_images=batch, images=10 * batch)
    layer = CapturedLayer(replace(LAYER, input_shape=shape))
    chunk = plan.chunk_images(layer, "input")
    assert batch % chunk == 0
    assert chunk == 1 or chunk * channels * side * side * 2 <= CHUNK_BYTES


def test_a_plan_survives_json() -> None:
    assert plan_from_json(PLAN.to_json()) == PLAN
    with pytest.raises(CorruptDataError):
        plan_from_json({"stream": "original"})
