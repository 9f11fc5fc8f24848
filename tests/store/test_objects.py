"""Runs in a bucket: keys, documents, arrays, round trips and failures, on a real S3 server."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from streamsparse.errors import CorruptDataError, RunError, RunNotFoundError, StorageError, UsageError
from streamsparse.store import Run, layout
from streamsparse.store import bucket as bucket_module
from streamsparse.store.batches import committed_batches
from streamsparse.store.bucket import Patience, open_bucket, parse_address
from streamsparse.store.stream import CapturedLayer, StreamPlan
from streamsparse.types import LayerGeometry
from tests.object_server import SECRET_KEY, Place
from tests.store.test_run import MANIFEST

ODD_NAMES = ["features.0", "a/b", "", ".", "..", "x y", "ü", "50%", "a#b?c+d", "layer@0"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after a second, so that the tests of dead servers are short."""
    monkeypatch.setattr(bucket_module, "PATIENCE", Patience(retry_seconds=1.0, longest_pause_seconds=0.3))


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("s3://bucket", ""),
        ("s3://bucket/", ""),
        ("s3://my.bucket-1/a/b c/", "a/b c"),
        ("s3://bucket/50%25", "50%25"),
    ],
)
def test_addresses(url: str, prefix: str) -> None:
    assert parse_address(url).prefix == prefix


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///x", "s3://user:word@bucket/x", "s3://bucket:80/x", "s3://bucket/a//b", "s3://bucket/../x",
     "s3://bucket/a#b", "s3://bucket/a?b=c", "s3://a b/x", "s3://ü/x", "gs://bucket/x", "s3:/bucket/x"],
)  # fmt: skip
def test_urls_that_name_no_place(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        Run.at(Path(url) if url == "s3:/bucket/x" else url)
    assert raised.value.got == url


def test_an_endpoint_that_does_not_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(UsageError) as raised:
        Run.at("s3://bucket/run")
    assert raised.value.where == "AWS_ENDPOINT_URL"


def test_documents_come_and_go(place: Place) -> None:
    documents = Run.at(place.url).documents
    keys = [f"statistics/{layout.part(name)}/record.json" for name in ODD_NAMES]
    for number, key in enumerate(keys):
        assert documents.read_json(key) is None
        documents.write_json(key, {"number": number})
    assert [layout.name_of(name) for name in documents.names("statistics")] == sorted(ODD_NAMES, key=layout.part)
    assert documents.keys("statistics") == sorted(keys)
    assert documents.read_many_json([*keys, "nothing"]) == [*({"number": n} for n in range(len(keys))), None]
    assert documents.size_bytes("statistics") == sum(len(documents.read(key) or b"") for key in keys)
    assert documents.size_bytes("stat") == 0
    assert documents.names("nothing") == documents.keys("nothing") == []
    assert documents.write_once(keys[0], b"other") == documents.read(keys[0]) != b"other"
    assert documents.write_once("new", b"first") == b"first"
    documents.delete_key(keys[0])
    documents.delete_key(keys[0])
    assert not documents.exists(keys[0])
    documents.delete("statistics")
    documents.delete("statistics")
    assert documents.keys("") == ["new"]
    documents.write("damaged", b"[1]")
    with pytest.raises(CorruptDataError, match="not readable"):
        documents.read_many_json(["damaged"])


def test_a_run_and_its_records(place: Place) -> None:
    run = Run.at(place.url)
    assert not run.exists
    assert run.directory is None
    with pytest.raises(RunNotFoundError) as raised:
        run.manifest()
    assert raised.value.got == "nothing"
    run.require_own()
    run.begin(MANIFEST, b"weights")
    assert Run.at(place.url + "/").weights() == b"weights"
    arrays = {"large": np.random.default_rng(0).normal(size=(900, 900)), "empty": np.zeros((0, 3))}  # 6.5 MB
    run.records.write("statistics/x/y", {"folds": 1}, arrays)
    found = Run.at(place.url).records.read("statistics/x/y")
    assert found is not None
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    run.write_checkpoint("pruned", {"b": b"2", "a": b"1"}, last="b")
    assert run.read_checkpoint("pruned") == {"a": b"1", "b": b"2"}
    run.clear()
    assert not run.exists
    assert Run.at(place.url).documents.keys("locks") == []


def test_a_prefix_that_holds_something_else(place: Place) -> None:
    run = Run.at(place.url)
    run.documents.write("thesis/chapter-1.txt", b"It was a dark and stormy night")
    with pytest.raises(RunError, match="not a run") as raised:
        run.require_own()
    assert raised.value.got == "thesis"
    run.documents.delete("thesis")
    run.documents.write(layout.WEIGHTS, b"of a run that was killed before its manifest")
    run.require_own()


def plan_of(batches: int) -> StreamPlan:
    geometry = LayerGeometry(
        layer="conv", kind="conv2d", in_channels=2, out_channels=3, kernel=(1, 1), stride=(1, 1),
        padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1, padding_mode="zeros", bias=True,
        input_shape=(2, 4, 4), output_shape=(3, 4, 4),
    )  # fmt: skip
    layer = CapturedLayer(geometry)
    return StreamPlan("original", 0, 1, 0, batches, 1, "float32", "zstd:1", (layer,))


def test_markers_are_read_at_once(place: Place) -> None:
    """Forty markers at 100 ms each take 4 s in turn; a listing and two waves of 32 requests take 0.3 s."""
    run, plan = Run.at(place.url), plan_of(40)
    prefix = layout.shard_prefix("original", 0, 1)
    for index in range(40):
        marker = {"plan": plan.digest, "batch": index, "first_image": index, "images": 1, "digest": "0"}
        run.documents.write_json(layout.commit_key(prefix, index), marker)
    place.proxy.latency_seconds = 0.1
    place.proxy.requests.clear()
    started = time.perf_counter()
    found = committed_batches(run.documents, prefix, plan)
    seconds = time.perf_counter() - started
    assert [batch.index for batch in found] == list(range(40))
    assert len(place.proxy.requests) == 42
    assert seconds < 2


def test_batches_of_arrays(place: Place) -> None:
    plan = plan_of(4)
    writer = Run.at(place.url).writer(plan)
    geometry = plan.layers[0].geometry
    random = np.random.default_rng(0)
    tensors = {
        ("conv", 0, side): random.normal(size=(4, *plan.layers[0].shape(side))).astype(np.float32)
        for side in ("input", "output")
    }
    for index in (0, 2):
        writer.write(index, {name: array[index : index + 1] for name, array in tensors.items()}, "digest")
    assert sorted(Run.at(place.url).writer(plan).committed()) == [0, 2]
    reader = Run.at(place.url).reader()
    assert [batch.index for batch in reader.batches()] == [0, 2]
    found = reader.read(reader.batches()[1], geometry.layer, 0, "output")
    np.testing.assert_array_equal(found, tensors["conv", 0, "output"][2:3])
    Run.at(place.url).documents.delete(f"{layout.array_key(reader.batches()[0].shard, 'conv', 0, 'input')}/c")
    with pytest.raises(CorruptDataError, match="missing"):
        reader.read(reader.batches()[1], geometry.layer, 0, "input")


def test_metadata_of_arrays_is_read_once(place: Place) -> None:
    records = Run.at(place.url).records
    records.write("a", {}, {"x": np.arange(3), "y": np.arange(4)})
    other = Run.at(place.url).records
    other.read("a")
    place.proxy.requests.clear()
    for _ in range(3):
        found = other.read("a")
    assert found is not None
    assert found.arrays["y"].tolist() == [0, 1, 2, 3]
    assert not [line for line in place.proxy.requests if "/zarr.json " in line or "/.z" in line]
    records.write("a", {}, {"x": np.arange(5)})  # elsewhere
    found = other.read("a")
    assert found is not None
    assert found.arrays["x"].tolist() == [0, 1, 2, 3, 4]


def test_metadata_that_is_deleted_is_forgotten(place: Place) -> None:
    run = Run.at(place.url)
    zarr.create_array(run.store, name="a/b", data=np.arange(3))
    assert zarr.open_array(run.store, path="a/b", mode="r")[2] == 2
    run.documents.delete("a")
    with pytest.raises(FileNotFoundError):
        zarr.open_array(run.store, path="a/b", mode="r")
    zarr.create_array(run.store, name="a/b", data=np.arange(4.0))
    run.documents.delete_key("a/b/zarr.json")
    with pytest.raises(FileNotFoundError):
        zarr.open_array(run.store, path="a/b", mode="r")


def test_a_pickled_store_carries_no_credentials(place: Place) -> None:
    store = open_bucket(place.url)
    pickled = pickle.dumps(store)
    assert SECRET_KEY.encode() not in pickled
    assert pickle.loads(pickled) == store
    Run.at(place.url).documents.write("key", b"value")
    assert pickle.loads(pickle.dumps(Run.at(place.url))).documents.read("key") == b"value"


def test_a_bucket_that_does_not_exist(place: Place) -> None:
    run = Run.at("s3://no-such-bucket/run")
    for use in (run.manifest, run.require_own, lambda: run.documents.write("a", b"1"), run.lock().__enter__):
        with pytest.raises(StorageError, match="The bucket does not exist") as raised:
            use()
        assert f"http://127.0.0.1:{place.proxy.port}" in str(raised.value.where)
        assert "NoSuchBucket" in str(raised.value.got)


@pytest.mark.parametrize(
    ("variable", "remedy"), [("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"), ("AWS_SECRET_ACCESS_KEY", "AWS_SECRET")]
)
def test_keys_that_the_server_does_not_accept(
    place: Place, monkeypatch: pytest.MonkeyPatch, variable: str, remedy: str
) -> None:
    monkeypatch.setenv(variable, "not-the-right-value")
    run = Run.at(place.url)
    for use in (run.manifest, lambda: run.documents.write("a", b"1"), lambda: run.documents.names("")):
        with pytest.raises(StorageError) as raised:
            use()
        assert remedy in str(raised.value.remedy)
        assert "not-the-right-value" not in str(raised.value)
        assert SECRET_KEY not in str(raised.value)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:password@127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(StorageError, match="cannot be reached") as raised:
        Run.at(place.url).manifest()
    assert time.perf_counter() - started < 10
    assert str(raised.value.where).endswith("http://127.0.0.1:9")
    assert "password" not in str(raised.value)
    assert raised.value.exit_status == 1


def test_a_short_outage_is_waited_for(place: Place) -> None:
    run = Run.at(place.url)
    run.documents.write("key", b"value")
    place.proxy.cut()
    restored = time.monotonic() + 1.0
    threading.Timer(1.0, place.proxy.restore).start()
    assert run.documents.read("key") == b"value"
    assert time.monotonic() >= restored - 0.1
