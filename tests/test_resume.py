"""kill -9 at random moments, again and again: what comes out in the end is what an undisturbed run gives.

The victims are forked from a server that has imported everything once. One kind of kill strikes between a file's
temporary name and its own, the moment that leaves the most behind; the other strikes at any time at all.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

from streamsparse.capture import CaptureSettings
from streamsparse.run import prune
from streamsparse.solve import SolveSettings
from streamsparse.store import Run
from streamsparse.store.solution import read_solution, read_weights
from streamsparse.store.statistics import Statistics
from tests.small import SmallNet, build, files_below, random_images, statistics_arrays

SETTINGS = CaptureSettings("float32", batch_images=8)


def work(path: Path) -> None:
    """All stages, the refit in order included; single-threaded, so that equal means equal."""
    import torch

    torch.set_num_threads(1)
    prune(
        build(SmallNet), random_images(40), budget="params=0.4", run=path, capture_settings=SETTINGS,
        solve_settings=SolveSettings("elimination"), executor="serial",
    )  # fmt: skip


def work_and_die(path: Path, renames: int) -> None:
    """`work`, killed just before file number `renames` gets its own name."""
    original: Callable[[Path, Path], Path] = Path.replace
    done = 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done > renames:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target)

    Path.replace = replace  # type: ignore[method-assign,assignment]
    work(path)


def count_renames(path: Path, counted: Path) -> None:
    """`work`; how many files it wrote is left in `counted`."""
    original: Callable[[Path, Path], Path] = Path.replace
    done = 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        return original(self, target)

    Path.replace = replace  # type: ignore[method-assign,assignment]
    work(path)
    counted.write_text(str(done))


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    lazily_imported = [
        "torch.export",
        "torch._dynamo",
        "torch._inductor",
        "torch.onnx",
        "torch._dynamo.convert_frame",
    ]
    found.set_forkserver_preload(["streamsparse.run", *lazily_imported, "tests.small", __name__])
    return found


@pytest.fixture(scope="module")
def undisturbed(context: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, float]:
    """A run that nobody killed, how many files it renamed, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(context.Process(target=work, args=(folder / "warm",)))
    started = time.perf_counter()
    finish(context.Process(target=count_renames, args=(folder / "run", folder / "count")))
    return folder / "run", int((folder / "count").read_text()), time.perf_counter() - started


def finish(process: ForkServerProcess, expected: int = 0) -> None:
    process.start()
    process.join(120)
    assert process.exitcode == expected


def assert_same(path: Path, reference: Path) -> None:
    """Activations, statistics, solution and checkpoint, bit for bit."""
    whole, found = Run.at(reference), Run.at(path)
    chunks = {
        name: data for name, data in files_below(reference / "activations").items() if not name.endswith(".json")
    }
    assert {
        name: data
        for name, data in files_below(path / "activations").items()
        if not name.endswith((".json", ".partial"))
    } == chunks
    assert found.reader().require_complete() == whole.reader().require_complete()
    for stream in whole.documents.names("statistics"):
        if stream.startswith(("original", "refit-")):
            assert set(Statistics(found, stream)) == set(Statistics(whole, stream))
            expected, got = statistics_arrays(whole, stream), statistics_arrays(found, stream)
            assert all(np.array_equal(got[key], expected[key]) for key in expected)
    assert read_solution(found) == read_solution(whole)
    solution = read_solution(whole)
    for layer, (weight, bias) in read_weights(whole, solution).items():
        assert np.array_equal(read_weights(found, solution)[layer][0], weight)
        assert np.array_equal(read_weights(found, solution)[layer][1], bias)  # type: ignore[arg-type]
    assert found.read_checkpoint("pruned").keys() == whole.read_checkpoint("pruned").keys()
    weights = "model.safetensors"
    assert found.read_checkpoint("pruned")[weights] == whole.read_checkpoint("pruned")[weights]
    assert [p.name for p in (path / "activations").iterdir() if p.is_dir()] == ["original"]


@pytest.mark.parametrize("seed", range(3))
def test_killed_between_names_and_resumed(
    context: ForkServerContext, undisturbed: tuple[Path, int, float], tmp_path: Path, seed: int
) -> None:
    """Two kills in one run, each somewhere in what was left to do."""
    reference, renames, _ = undisturbed
    chosen = random.Random(seed)
    path = tmp_path / "run"
    first = chosen.randrange(renames)
    finish(context.Process(target=work_and_die, args=(path, first)), -signal.SIGKILL)
    second = context.Process(target=work_and_die, args=(path, chosen.randrange(max(1, renames - first))))
    second.start()
    second.join(120)
    assert second.exitcode in (0, -signal.SIGKILL)
    finish(context.Process(target=work, args=(path,)))
    assert_same(path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_time_and_resumed(
    context: ForkServerContext, undisturbed: tuple[Path, int, float], tmp_path: Path, seed: int
) -> None:
    reference, _, seconds = undisturbed
    chosen = random.Random(1000 + seed)
    path = tmp_path / "run"
    for _ in range(3):
        victim = context.Process(target=work, args=(path,))
        victim.start()
        victim.join(chosen.uniform(0, seconds))
        victim.kill()
        victim.join(20)
    finish(context.Process(target=work, args=(path,)))
    assert_same(path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_killed_between_many_names_and_resumed(
    context: ForkServerContext, undisturbed: tuple[Path, int, float], tmp_path: Path, seed: int
) -> None:
    test_killed_between_names_and_resumed(context, undisturbed, tmp_path, 100 + seed)
