"""Checkpoint files in a directory: written as a whole or not at all, read without leaving the directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from streamsparse.errors import CheckpointError, StorageError
from streamsparse.write.description import CONFIG_FILE, CONFIG_LIMIT_BYTES
from streamsparse.write.safetensors_file import WEIGHTS_FILE

OPTIONAL_FILES = ("model.pt2", "model.onnx")


def save(directory: str | Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> Path:
    """Write a checkpoint's files so that `directory` holds all of them or does not change.

    The files go to a temporary sibling, are flushed to the disk, and the sibling is renamed. With `overwrite` the
    old directory is moved aside just before and removed afterwards.

    Args:
        directory: must not exist, unless `overwrite` and it holds nothing but a checkpoint.
        files: contents by plain file name, as `encode_checkpoint` gives them.

    Returns:
        the directory.

    Raises:
        CheckpointError: the directory exists, or a file name is not plain.
        StorageError: the disk is full or refuses.
    """
    target = Path(directory).absolute()
    _check_names(files)
    _check_target(target, overwrite)
    mark = uuid4().hex[:12]
    partial, replaced = (target.with_name(f".{target.name}.{mark}.{kind}") for kind in ("partial", "replaced"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_all(partial, files)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        _flush(target.parent)
    except OSError as error:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            "The checkpoint could not be written.",
            expected="a directory with room and permission",
            got=error,
            where=target,
            remedy="Free disk space or choose another directory; nothing was left half-written.",
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def read(directory: Path) -> dict[str, bytes]:
    """The two required files of a checkpoint directory, those that are there.

    Raises:
        CheckpointError: no directory, or a file that is not a regular one inside it, or oversized.
        StorageError: a file cannot be read.
    """
    if not directory.is_dir():
        raise CheckpointError(
            "There is no checkpoint directory.",
            expected=f"a directory with {WEIGHTS_FILE} and {CONFIG_FILE}",
            got="a file" if directory.exists() else "nothing",
            where=directory,
            remedy="Check the path; write a checkpoint with streamsparse write or result.save.",
        )
    return {
        name: _read_one(directory, name)
        for name in (CONFIG_FILE, WEIGHTS_FILE)
        if (directory / name).is_symlink() or (directory / name).exists()
    }


def _read_one(directory: Path, name: str) -> bytes:
    path = directory / name
    if path.resolve().parent != directory.resolve() or not path.is_file():
        raise CheckpointError(
            "A file of the checkpoint is not a regular file of its directory.",
            expected="a regular file",
            got=f"a link to {path.resolve()}" if path.is_symlink() else "something else",
            where=path,
            remedy="Copy the files themselves into the directory.",
        )
    if name == CONFIG_FILE and path.stat().st_size > CONFIG_LIMIT_BYTES:
        raise CheckpointError(
            "The checkpoint's configuration is too large.",
            expected=f"at most {CONFIG_LIMIT_BYTES} bytes",
            got=f"{path.stat().st_size} bytes",
            where=path,
            remedy="This is not a configuration that streamsparse wrote.",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(
            "A file of the checkpoint cannot be read.",
            expected="a readable file",
            got=error,
            where=path,
            remedy="Check its permissions and the disk.",
        ) from error


def _check_names(files: Mapping[str, bytes]) -> None:
    for name in files:
        if not name or name.startswith(".") or set(name) & set("/\\\0") or Path(name).name != name:
            raise CheckpointError(
                "A file name of a checkpoint must be plain.",
                expected="a name without directories that does not start with a dot",
                got=repr(name),
                remedy="Use names such as model.safetensors.",
            )


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    known = {WEIGHTS_FILE, CONFIG_FILE, *OPTIONAL_FILES}
    foreign = not target.is_dir() or target.is_symlink()
    others = [] if foreign else sorted(entry.name for entry in target.iterdir() if entry.name not in known)
    if overwrite and not foreign and not others:
        return
    raise CheckpointError(
        "The directory for the checkpoint exists already.",
        expected="a new directory" + (", or one with nothing but a checkpoint" if overwrite else ""),
        got=f"other files: {', '.join(others[:4])}" if others else "an existing path",
        where=target,
        remedy="Choose another directory" + ("." if overwrite else ", or pass overwrite=True."),
    )


def _write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir()
    for name, content in files.items():
        with (directory / name).open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    _flush(directory)


def _flush(directory: Path) -> None:
    """A new name is on the disk only once its directory is."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
