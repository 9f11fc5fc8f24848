"""A real PostgreSQL for tests: a cluster of its own in a temporary directory, on the loopback.

Debian keeps the programs outside the path. PostgreSQL refuses to run as root; as root it is run as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.object_server import free_port

START_SECONDS = 60


def find_programs() -> Path | None:
    """The newest directory with `postgres` and `initdb`."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).parent, *candidates] if on_path else candidates
    return next((path for path in reversed(candidates) if (path / "postgres").exists()), None)


def why_not() -> str | None:
    """What is missing."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed (extra postgresql)"
    return None if find_programs() else "PostgreSQL is not installed"


@contextmanager
def postgresql() -> Iterator[str]:
    """A server; the start of its databases' URLs, which end in their names."""
    programs = find_programs()
    assert programs is not None
    user = "nobody" if os.geteuid() == 0 else None
    place = "/tmp" if user else None  # the user's own directory may be closed to others
    with tempfile.TemporaryDirectory(prefix="streamsparse-postgresql-", dir=place) as temporary:
        directory, data, port = Path(temporary), Path(temporary) / "data", free_port()
        if user:
            account = pwd.getpwnam(user)
            os.chown(directory, account.pw_uid, account.pw_gid)

        def run(*command: str) -> None:
            done = subprocess.run(command, user=user, cwd=directory, capture_output=True, timeout=START_SECONDS)
            assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()

        trusting = ["--auth=trust", "--username=tests", "--encoding=UTF8", "--no-locale", "--no-sync"]
        run(f"{programs}/initdb", *trusting, f"--pgdata={data}")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory} -c fsync=off"
        control = [f"{programs}/pg_ctl", f"--pgdata={data}", "--wait", f"--log={directory}/log"]
        run(*control, f"--options={options}", "start")
        try:
            yield f"postgresql+psycopg://tests@127.0.0.1:{port}"
        finally:
            run(*control, "--mode=immediate", "stop")


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """Makes an empty database of one server, and returns its URL."""
    if reason := why_not():
        pytest.skip(reason)
    with postgresql() as url:
        engine = create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
        names = (f"tests_{number}" for number in range(10**6))

        def make() -> str:
            name = next(names)
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            return f"{url}/{name}"

        yield make
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'q.db'}"
    make: Callable[[], str] = request.getfixturevalue("new_database")
    return make()
