"""All stages on an S3 server: the same results as on a disk, whatever dies in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamsparse
from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import StorageError
from streamsparse.run import prune
from streamsparse.solve import SolveSettings
from streamsparse.store import Run
from streamsparse.store import bucket as bucket_module
from streamsparse.store.bucket import Patience
from streamsparse.store.solution import read_solution, read_weights
from tests.cli.invoking import invoke
from tests.cli.test_commands import files, last_json, model_options  # noqa: F401  a fixture
from tests.object_server import Place
from tests.small import SmallNet, build, random_images, statistics_arrays

SETTINGS = CaptureSettings("float32", batch_images=8)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after a second, so that the tests of dead servers are short."""
    monkeypatch.setattr(bucket_module, "PATIENCE", Patience(retry_seconds=1.0, longest_pause_seconds=0.3))


def work(url: str | Path) -> None:
    """Capture and accumulate."""
    capture(build(SmallNet), random_images(40), Run.at(url), settings=SETTINGS)
    accumulate(Run.at(url), settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial")


def assert_same_statistics(url: str, reference: str | Path) -> None:
    expected, found = statistics_arrays(Run.at(reference)), statistics_arrays(Run.at(url))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def kill_at(place: Place, method: str, part: str, number: int = 1) -> threading.Event:
    """Kill the server at the `number`-th request of this method whose key has `part`; the event says it is done."""
    done, seen = threading.Event(), [0]

    def watch(line: str) -> None:
        if line.startswith(method) and part in line:
            seen[0] += 1
            if seen[0] == number and not done.is_set():
                place.server.kill()
                done.set()

    place.proxy.on_request = watch
    return done


def test_all_stages_as_on_a_disk(place: Place, tmp_path: Path) -> None:
    for url in (place.url, tmp_path / "run"):
        result = prune(
            build(SmallNet), random_images(40), budget="params=0.5", run=url, capture_settings=SETTINGS,
            solve_settings=SolveSettings("elimination"), executor="serial",
        )  # fmt: skip
        result.save(tmp_path / f"saved-{url == place.url}")
    assert_same_statistics(place.url, tmp_path / "run")
    here, there = Run.at(tmp_path / "run"), Run.at(place.url)
    assert read_solution(there) == read_solution(here)
    weights, expected = read_weights(there, read_solution(there)), read_weights(here, read_solution(here))
    assert all(np.array_equal(weights[layer][0], expected[layer][0]) for layer in expected)
    assert (
        there.read_checkpoint("pruned")["model.safetensors"] == here.read_checkpoint("pruned")["model.safetensors"]
    )
    assert streamsparse.load(tmp_path / "saved-True", build(SmallNet)) is not None
    assert there.documents.keys("locks") == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("stage", "method", "part", "number"),
    [
        ("capture", "PUT", "commits/batch-00000002.json", 1),
        ("accumulate", "PUT", "/gram/c/", 3),
        pytest.param("capture", "PUT", "batch", 1, marks=pytest.mark.slow),
        pytest.param("capture", "PUT", "/input/c/3", 2, marks=pytest.mark.slow),
        pytest.param("accumulate", "GET", "/input/c/2", 1, marks=pytest.mark.slow),
        pytest.param("accumulate", "PUT", "record.json", 2, marks=pytest.mark.slow),
    ],
)
def test_a_server_that_dies(place: Place, tmp_path: Path, stage: str, method: str, part: str, number: int) -> None:
    work(tmp_path / "reference")
    if stage == "accumulate":
        capture(build(SmallNet), random_images(40), Run.at(place.url), settings=SETTINGS)
    killed = kill_at(place, method, part, number)
    try:
        with pytest.raises(StorageError, match=r"cannot be reached|did not do") as raised:
            work(place.url)
    finally:
        killed.wait(1)
        place.server.start()
    assert f"127.0.0.1:{place.proxy.port}" in str(raised.value.where)
    assert "resumes" in str(raised.value.remedy)
    started = time.perf_counter()
    work(place.url)
    assert time.perf_counter() - started < 20, "waited for the lock of the dead attempt"
    assert_same_statistics(place.url, tmp_path / "reference")


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_commands_when_the_server_dies(place: Place, files: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """Exit status 1 and a message; the same command goes on when the server is back."""
    options = (*model_options(files), "--batch-size", 20, "--json")
    invoke("capture", tmp_path / "run", *options)
    invoke("accumulate", tmp_path / "run", "--json")
    commands: list[tuple[tuple[Any, ...], str, str]] = [
        (("capture", place.url, *options), "PUT", "commits/batch-00000001.json"),
        (("accumulate", place.url, "--json"), "PUT", "/cross/c/"),
    ]
    reports = []
    for command, method, part in commands:
        kill_at(place, method, part)
        failed = invoke(*command)
        place.server.start()
        assert failed.exit_code == 1, failed.output
        assert "to do" in failed.output
        assert "Traceback" not in failed.output
        reports.append(last_json(invoke(*command))["report"])
    assert reports[0]["reused_images"] >= 20
    assert_same_statistics(place.url, tmp_path / "run")


def work_elsewhere(environment: dict[str, str], url: str) -> None:
    """`work` in a process of its own."""
    os.environ.update(environment)
    work(url)


@pytest.mark.slow
def test_a_client_that_is_killed(place: Place, tmp_path: Path) -> None:
    """kill -9 in the middle of a batch and in the middle of the sums; begun again at once, it goes on at once."""
    work(tmp_path / "reference")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["streamsparse.run", "torch._dynamo", "tests.small", __name__])
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for method, part in (("PUT", "commits/batch-00000001.json"), ("PUT", "/gram/c/"), ("nothing", "")):
        client = context.Process(target=work_elsewhere, args=(environment, place.url))
        client.start()

        def watch(line: str, method: str = method, part: str = part, victim: int | None = client.pid) -> None:
            if victim is not None and line.startswith(method) and part in line:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)

        place.proxy.on_request = watch
        client.join(120)
        assert client.exitcode == (0 if method == "nothing" else -signal.SIGKILL)
    waited = [line for line in place.proxy.requests if "list-type" in line and "locks%2F" in line]
    assert len(waited) < 30, "waited for the lock of the dead process"
    assert_same_statistics(place.url, tmp_path / "reference")
    assert Run.at(place.url).documents.keys("locks") == []


@pytest.mark.slow
def test_every_command_at_100_ms(place: Place, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """A distant bucket: seconds and requests of each command are printed (pytest -s)."""
    place.proxy.latency_seconds = 0.1
    commands: list[tuple[Any, ...]] = [
        ("capture", place.url, *model_options(files), "--batch-size", 20, "--json"),
        ("accumulate", place.url, "--json"),
        ("solve", place.url, "--budget", "params=0.3", "--json"),
        ("write", place.url, "--json"),
        ("evaluate", place.url, "--data", files["data"], "--json"),
        ("inspect", place.url, "--json"),
    ]
    for command in commands:
        place.proxy.requests.clear()
        started = time.perf_counter()
        result = invoke(*command)
        seconds = time.perf_counter() - started
        assert result.exit_code == 0, result.output
        with capsys.disabled():
            print(
                json.dumps(
                    {"command": command[0], "seconds": round(seconds, 1), "requests": len(place.proxy.requests)}
                )
            )
        assert seconds < 90
    stages = last_json(result)["stages"]
    assert {stage["state"] for stage in stages} == {"complete"}
