"""The service's database: SQLite (WAL) or PostgreSQL, through SQLAlchemy.

jobs              one row per job; a unique index lets one job per run be running, whatever processes do
events            what jobs report, numbered per job in the order of commits
idempotency       the job that a key of a client stands for
registered_runs   runs outside ROOT, by name
secrets           shared by the service's processes: signs tickets and deletions
"""

from __future__ import annotations

import secrets as random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, ProgrammingError, SQLAlchemyError

from streamsparse.errors import StorageError, UsageError

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # order of submission
    Column("id", String(32), unique=True, nullable=False),
    Column("run", String(100), nullable=False),
    Column("run_url", String(1200), nullable=False),  # what the lease is on: two names may mean one run
    Column("kind", String(20), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("state", String(12), nullable=False),
    Column("reason", Text),
    Column("error", JSON),
    Column("result", JSON),
    Column("progress", JSON, nullable=False, default=list),
    Column("log", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("crashes", Integer, nullable=False, default=0),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("submitted_by", String(100), nullable=False),
    Column("created", Float, nullable=False),  # seconds since 1970, as all times here
    Column("started", Float),
    Column("finished", Float),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("owner", Text),  # JSON: who the worker is, see `store.processes`
    Column("lease_expires", Float),
    Index("jobs_by_state", "state", "not_before", "number"),
    Index("jobs_by_run", "run_url", "number"),
    Index(
        "one_running_job_per_run",
        "run_url",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("job", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("data", JSON, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", String(300), primary_key=True),  # who, and the client's key
    Column("request", String(64), nullable=False),  # SHA-256 of what was asked
    Column("job", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("created", Float, nullable=False),
)

registered_runs = Table(
    "registered_runs",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("url", String(1000), nullable=False),
    Column("created", Float, nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("value", String(100), nullable=False),
)


def open_database(url: str) -> Engine:
    """The engine, with every table there.

    Raises:
        UsageError: the URL does not parse, or its driver is not installed.
        StorageError: the database cannot be reached.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UsageError(
            "This database cannot be opened.",
            expected="sqlite:///PATH, or postgresql+psycopg://USER@HOST/NAME with psycopg installed",
            got=f"{type(error).__name__}: {error}",
            where="--database",
        ) from error
    except OSError as error:
        raise StorageError("The database's directory cannot be made.", got=error, where="--database") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    try:
        _create_tables(engine)
    except SQLAlchemyError as error:
        raise StorageError(
            "The database cannot be reached.", got=str(error).splitlines()[0], where="--database",
            remedy="check that it runs, and that this user may create tables",
        ) from error  # fmt: skip
    return engine


def _create_tables(engine: Engine) -> None:
    """Those that are missing; another service may make the same ones at the same moment."""
    try:
        metadata.create_all(engine)
    except (ProgrammingError, IntegrityError):
        metadata.create_all(engine)


def _prepare_sqlite(connection: Any, _: object) -> None:
    """WAL lets readers go on beside one writer; a committed job must survive the loss of power."""
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for statement in (
        "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON", "PRAGMA busy_timeout=20000",
    ):  # fmt: skip
        connection.execute(statement)


def _begin_immediate(connection: Any) -> None:
    """Take the lock for writing at once where something is written: a reader that turns writer may not wait."""
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def shared_secret(engine: Engine, name: str) -> bytes:
    """32 random bytes, the same for every process on this database."""
    try:
        with engine.begin() as connection:
            found = connection.execute(select(secrets.c.value).where(secrets.c.name == name)).scalar()
            if found is None:
                found = random.token_hex(32)
                connection.execute(secrets.insert().values(name=name, value=found))
    except IntegrityError:  # another process was first
        return shared_secret(engine, name)
    return bytes.fromhex(found)


def moment(seconds: float | None) -> datetime | None:
    """A stored time for people and JSON."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
