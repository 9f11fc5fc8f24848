"""Locks between real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamsparse.errors import RunLockedError, StorageError
from streamsparse.store.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from streamsparse.store.locks import locked
with locked(Path(sys.argv[1]), "run", shared=sys.argv[2] == "shared"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(directory: Path, kind: str = "exclusive") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input closes."""
    arguments = [sys.executable, "-c", HOLDER, str(directory), kind]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


def test_another_process_is_kept_out_and_named(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        for shared in (False, True):
            with pytest.raises(RunLockedError) as raised, locked(tmp_path, shared=shared):
                pass
            assert str(process.pid) in str(raised.value.got)
    with locked(tmp_path):
        pass


def test_shared_holders_tolerate_each_other_but_no_writer(tmp_path: Path) -> None:
    with held(tmp_path, "shared"):
        with locked(tmp_path, shared=True):
            pass
        with pytest.raises(RunLockedError), locked(tmp_path):
            pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        with locked(tmp_path):
            pass


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as raised, locked(tmp_path / "file"):
        pass
    assert "file" in str(raised.value.where)
