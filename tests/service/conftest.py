"""A solved run, made once, and copies of it to serve."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.live import Live, make_run, serving
from tests.service.postgresql import database_url, new_database

__all__ = ["database_url", "new_database"]


@pytest.fixture(scope="session")
def solved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything from capture to checkpoint; not to be changed."""
    path = tmp_path_factory.mktemp("solved") / "small"
    make_run(path)
    return path


@pytest.fixture
def root(tmp_path: Path, solved_run: Path) -> Path:
    """A ROOT with the run `small`."""
    shutil.copytree(solved_run, tmp_path / "root" / "small")
    return tmp_path / "root"


@pytest.fixture
def live(root: Path) -> Iterator[Live]:
    """A service over ROOT."""
    with serving(root) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, solved_run: Path) -> Iterator[Live]:
    """A service for tests that only read."""
    root = tmp_path_factory.mktemp("shared")
    shutil.copytree(solved_run, root / "small")
    with serving(root, jobs=0) as found:
        yield found
