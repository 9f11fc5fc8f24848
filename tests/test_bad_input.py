"""Bad input on the command line: each has its own error, status 2 (or 1), and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from streamsparse.capture import CaptureSettings, capture
from streamsparse.cli.app import app
from streamsparse.errors import StorageError
from streamsparse.store import Run
from tests.small import DAMAGE, SmallNet, build, captured_run, files_below, flip_bit, random_images

MODEL = "tests.small:SmallNet"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """weights.safetensors, images.npz, and a finished run."""
    folder = tmp_path_factory.mktemp("good")
    save_file(build(SmallNet).state_dict(), folder / "weights.safetensors")
    np.savez(folder / "images.npz", images=random_images(40).numpy(), labels=np.zeros(40, np.int64))
    status, said = command(folder, "prune", "--channels", "conv1=4,fc1=6", "--dtype", "float32")
    assert status == 0, said
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """The same files, to be spoilt."""
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def command(folder: Path, name: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Run a command on the folder's files; its exit status and last line of JSON."""
    arguments = [name, str(folder / "run"), *options, "--json"]
    if name in ("capture", "prune"):
        arguments += ["--model", MODEL, "--weights", str(folder / "weights.safetensors")]
        arguments += ["--data", f"npz:{folder / 'images.npz'}", "--batch-size", "10"]
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, json.loads(result.stdout.strip().splitlines()[-1])


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")


def spoil_images(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    images = change(random_images(40).numpy().copy())
    np.savez(folder / "images.npz", images=images, labels=np.zeros(len(images), np.int64))


def with_value(images: np.ndarray, value: float) -> np.ndarray:
    images[7] = value
    return images


def nan_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv2.weight"][0, 0, 0, 0] = float("nan")


def huge_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors["norm2.weight"] *= 1e7


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc1.weight"] = torch.zeros(12, 9)


def foreign(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/thesis.tex").write_text("years of work")


# name -> (what is done to the folder, options, error)
NEW_RUN: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "weights missing": (lambda f: (f / "weights.safetensors").unlink(), (), "WeightsError"),
    "weights no file of weights": (lambda f: (f / "weights.safetensors").write_text("no"), (), "WeightsError"),
    "weights truncated": (
        lambda f: (f / "weights.safetensors").write_bytes((f / "weights.safetensors").read_bytes()[:-50]),
        (),
        "WeightsError",
    ),
    "weights without a tensor": (lambda f: weights(f, lambda t: t.pop("fc2.bias")), (), "WeightsError"),
    "weights of another shape": (lambda f: weights(f, other_shape), (), "WeightsError"),
    "weights not finite": (lambda f: weights(f, nan_weight), (), "WeightsError"),
    "images missing": (lambda f: (f / "images.npz").unlink(), (), "DataError"),
    "no images": (lambda f: spoil_images(f, lambda images: images[:0]), (), "DataError"),
    "images of another shape": (
        lambda f: spoil_images(f, lambda images: np.repeat(images, 3, axis=1)), (), "ModelError",
    ),
    "unknown dtype": (lambda _: None, ("--dtype", "int8"), "UsageError"),
    "unknown codec": (lambda _: None, ("--codec", "lzma"), "UsageError"),
    "unknown shard": (lambda _: None, ("--shard", "3/2"), "UsageError"),
    "unknown device": (lambda _: None, ("--device", "abacus"), "UsageError"),
    "a foreign directory": (foreign, (), "RunError"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEW_RUN)
def test_a_capture_that_cannot_begin_writes_nothing(folder: Path, case: str) -> None:
    spoil, options, error = NEW_RUN[case]
    shutil.rmtree(folder / "run")
    spoil(folder)
    before = files_below(folder)
    status, said = command(folder, "capture", *options)
    assert (status, said["error"]) == (2, error), said
    assert said["summary"]
    assert said["expected"] or said["got"]
    assert files_below(folder) == before
    assert not (folder / "run" / ".run.lock").exists()


# Found out while images are passed through the model: batches before the bad one may be kept, that one not.
WHILE_CAPTURING: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN images": (lambda f: spoil_images(f, lambda images: with_value(images, np.nan)), "NonFiniteError"),
    "infinite images": (lambda f: spoil_images(f, lambda images: with_value(images, np.inf)), "NonFiniteError"),
    "float16 overflow": (lambda f: weights(f, huge_weight), "HalfOverflowError"),
}


@pytest.mark.parametrize("case", WHILE_CAPTURING)
def test_values_that_cannot_be_stored_are_never_committed(folder: Path, case: str) -> None:
    spoil, error = WHILE_CAPTURING[case]
    shutil.rmtree(folder / "run")
    spoil(folder)
    status, said = command(folder, "capture")
    assert (status, said["error"]) == (2, error), said
    assert "layer" in said["where"]
    assert len(Run.at(folder / "run").reader().batches()) < 4
    status, said = command(folder, "accumulate")
    assert (status, said["error"]) == (2, "StageMissingError")


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "run/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def chunk(folder: Path) -> Path:
    return next(path for path in (folder / "run/activations").rglob("fc1@0/input/c/2/*") if path.is_file())


def drop(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def checkpoint(folder: Path) -> Path:
    return folder / "run/checkpoints/pruned/model.safetensors"


# name -> (what is done to the finished run, command, error)
FINISHED: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "another schema": (lambda f: edit_manifest(f, schema=99), ("accumulate",), "SchemaVersionError"),
    "another schema, capture": (lambda f: edit_manifest(f, schema=99), ("capture",), "SchemaVersionError"),
    "another schema, solve": (
        lambda f: edit_manifest(f, schema=99), ("solve", "--budget", "params=0.5"), "SchemaVersionError",
    ),
    "manifest cut off": (
        lambda f: (f / "run/manifest.json").write_text('{"schema": 1,'), ("inspect",), "CorruptDataError",
    ),
    "original weights flipped": (
        lambda f: flip_bit(f / "run/model/weights.safetensors"), ("write",), "CorruptDataError",
    ),
    "another model": (
        lambda f: weights(f, lambda t: t["fc1.bias"].add_(1)), ("capture", "--dtype", "float32"),
        "RunMismatchError",
    ),
    "other images": (
        lambda f: spoil_images(f, lambda images: images + 1), ("capture", "--dtype", "float32"), "RunMismatchError",
    ),
    "another dtype": (lambda _: None, ("capture", "--dtype", "float16"), "RunMismatchError"),
    "other shards": (lambda _: None, ("capture", "--dtype", "float32", "--seed", "1"), "RunMismatchError"),
    "activations missing": (lambda f: drop(f, "activations"), ("accumulate",), "StageMissingError"),
    "statistics missing": (
        lambda f: drop(f, "statistics"), ("solve", "--budget", "params=0.5"), "StageMissingError",
    ),
    "solution missing": (lambda f: drop(f, "solution"), ("write",), "StageMissingError"),
    "checkpoint without its description": (
        lambda f: drop(f, "checkpoints/pruned/config.json"), ("evaluate",), "CheckpointError",
    ),
    "checkpoint flipped": (lambda f: flip_bit(checkpoint(f)), ("evaluate",), "CheckpointError"),
    "checkpoint truncated": (
        lambda f: checkpoint(f).write_bytes(checkpoint(f).read_bytes()[:-9]), ("evaluate",), "CheckpointError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINISHED)
def test_a_spoilt_run_is_refused_and_left_as_it_is(folder: Path, case: str) -> None:
    spoil, (name, *options), error = FINISHED[case]
    spoil(folder)
    before = files_below(folder)
    if name == "evaluate":
        options += ["--data", f"npz:{folder / 'images.npz'}"]
    status, said = command(folder, name, *options)
    assert (status, said["error"]) == (2, error), said
    assert said["summary"]
    assert said["expected"] or said["got"]
    assert files_below(folder) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_named_and_no_statistics_come_of_it(folder: Path, damage: str) -> None:
    drop(folder, "statistics")
    DAMAGE[damage](chunk(folder))
    status, said = command(folder, "accumulate")
    assert (status, said["error"]) == (2, "CorruptDataError"), said
    assert "fc1@0/input, batch 2" in said["where"]
    assert not list((folder / "run/statistics").rglob("fc1/record.json"))
    status, said = command(folder, "solve", "--budget", "params=0.5")
    assert (status, said["error"]) == (2, "StageMissingError")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("capture", ("--dtype", "float32")),
        ("accumulate", ()),
        ("solve", ("--budget", "params=0.5")),
        ("refit", ()),
        ("write", ()),
    ],
)
def test_a_run_in_use_is_refused(folder: Path, name: str, options: tuple[str, ...]) -> None:
    before = files_below(folder)
    with Run.at(folder / "run").lock():
        status, said = command(folder, name, *options)
    assert (status, said["error"]) == (2, "RunLockedError"), said
    assert str(os.getpid()) in said["got"]
    assert files_below(folder) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges that this process lacks")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_commits_nothing_half_and_resumes_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    captured_run(tmp_path / "reference", images=80)
    ballast = small_disk / "ballast"
    run = small_disk / "run"
    ballast.write_bytes(b"x" * 800_000)

    def attempt() -> None:
        capture(build(SmallNet), random_images(80), run, settings=CaptureSettings("float32", batch_images=10))

    with pytest.raises(StorageError) as raised:
        attempt()
    assert raised.value.got == "No space left on device"
    assert raised.value.exit_status == 1
    assert "resumes" in str(raised.value.remedy)
    assert not list(run.rglob("*.partial"))
    committed = Run.at(run).reader().batches()
    assert 0 < len(committed) < 8
    for batch in committed:
        for layer in Run.at(run).reader().layers:
            for side in ("input", "output"):
                Run.at(run).reader().read(batch, layer, 0, side)
    ballast.unlink()
    attempt()
    assert files_below(run / "activations") == files_below(tmp_path / "reference/activations")
