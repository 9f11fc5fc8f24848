"""kill -9 of captures at random moments: what counts is right after every kill, and in the end all of it is there.

The victims are forked from a server that has imported everything once.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import StageMissingError
from streamsparse.store import Run
from streamsparse.verification import verify_run
from tests.small import SmallNet, build, files_below, random_images

IMAGES, SHARDS, BATCHES = 48, 2, 16
SETTINGS = {
    "lossless": CaptureSettings("float32", "zstd:1", batch_images=3, shards=SHARDS),
    "rounded": CaptureSettings("float16", "bitround:6+blosc:lz4", batch_images=3, shards=SHARDS),
}


def work(path: Path, kind: str) -> None:
    """Both shards, one after the other; single-threaded, so that equal means equal."""
    import torch

    torch.set_num_threads(1)
    for shard in range(SHARDS):
        settings = CaptureSettings(**{**vars(SETTINGS[kind]), "shard": shard})
        capture(build(SmallNet), random_images(IMAGES), path, settings=settings)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    lazily_imported = ["torch.export", "torch._dynamo", "torch._inductor", "torch._dynamo.convert_frame"]
    found.set_forkserver_preload(["streamsparse.capture", *lazily_imported, "tests.small", __name__])
    return found


def captured_files(path: Path) -> dict[str, bytes]:
    """Plans, markers, metadata and chunks; not what a kill left under a temporary name."""
    return {name: data for name, data in files_below(path / "activations").items() if not name.endswith(".partial")}


def assert_right_so_far(path: Path, reference: Run) -> int:
    """Nothing that counts is wrong; returns how many batches count."""
    run = Run.at(path)
    if not run.exists:
        return 0
    assert verify_run(run) == []
    try:
        batches = run.reader().batches()
    except StageMissingError:
        return 0
    whole, own = reference.reader(), run.reader()
    assert len({batch.first_image for batch in batches}) == len(batches)
    assert set(batches) <= set(whole.batches())
    for batch in batches:
        for layer in whole.layers:
            for side in ("input", "output"):
                found, expected = (each.read(batch, layer, 0, side) for each in (own, whole))
                assert np.array_equal(found, expected)
    return len(batches)


def committed(path: Path) -> int:
    """Markers of batches now; folders may go while they are walked."""
    return sum(
        name.endswith(".json") for folder, _, files in os.walk(path) if folder.endswith("commits") for name in files
    )


def kill_after(process: ForkServerProcess, path: Path, markers: int, seconds: float) -> bool:
    """Kill the victim once it has committed so many batches, and a little later; whether it still lived."""
    while process.is_alive() and committed(path) < markers:
        time.sleep(0.001)
    process.join(seconds)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return False
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    return True


@pytest.mark.parametrize("kind", ["lossless", pytest.param("rounded", marks=pytest.mark.slow)])
def test_captures_killed_at_any_time_and_resumed(context: ForkServerContext, tmp_path: Path, kind: str) -> None:
    """Kills between a batch's first chunk and its marker are the likely ones: most of the time goes there."""

    def start(path: Path) -> ForkServerProcess:
        process = context.Process(target=work, args=(path, kind))
        process.start()
        return process

    whole = start(tmp_path / "whole")
    whole.join(120)
    assert whole.exitcode == 0
    reference = Run.at(tmp_path / "whole")
    assert len(reference.reader().require_complete()) == BATCHES
    draw = random.Random(kind)
    counted = [0]
    for _ in range(5):
        target = draw.randint(counted[-1], min(counted[-1] + 4, BATCHES - 1))
        if not kill_after(start(tmp_path / "run"), tmp_path / "run", target, draw.uniform(0, 0.02)):
            break
        counted.append(assert_right_so_far(tmp_path / "run", reference))
    assert len(counted) > 1
    assert counted == sorted(counted)  # what was committed stays
    final = start(tmp_path / "run")
    final.join(120)
    assert final.exitcode == 0
    assert captured_files(tmp_path / "run") == captured_files(tmp_path / "whole")
    assert assert_right_so_far(tmp_path / "run", reference) == BATCHES
