"""What a service is started with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from streamsparse.errors import UsageError
from streamsparse.service.schemas.names import NAME_PATTERN
from streamsparse.store.opening import local_path

DEFAULT_PORT = 8765
STATE_DIRECTORY = ".streamsparse"
"""Below a local ROOT: the database, uploads on their way, registered runs' reports. No run has this name."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class Limits:
    """Bounds on what one client can ask of the service.

    Attributes:
        body_bytes: of a JSON body; body_depth: of its nesting; body_seconds: until it has arrived.
        upload_bytes: of a statistics archive as it is sent; unpacked_bytes, unpacked_files: of what is in it.
        requests_per_second: of one token, or address where there are no tokens, in the long run; burst: at once.
        streams: event streams at the same time.
        queued_jobs: that may wait at the same time.
    """

    body_bytes: int = 2**20
    body_depth: int = 32
    body_seconds: float = 30.0
    upload_bytes: int = 4 * 2**30
    unpacked_bytes: int = 16 * 2**30
    unpacked_files: int = 100_000
    requests_per_second: float = 50.0
    burst: int = 500
    streams: int = 2000
    queued_jobs: int = 10_000


@dataclass(frozen=True)
class Timing:
    """How the queue's processes watch one another.

    Attributes:
        lease_seconds: without a heartbeat after which a job's process is given up for dead.
        heartbeat_seconds: between two heartbeats.
        poll_seconds: between two looks at the queue, and at new events.
        first_retry_seconds: before a waiting job is tried again; doubles up to `longest_retry_seconds`.
        crashes: of a job's process (killed, out of memory) after which the job fails instead of being tried again.
        terminate_seconds: between SIGTERM and SIGKILL of a cancelled job.
        cluster_seconds: without any worker after which a job gives up the cluster, and waits.
    """

    lease_seconds: float = 30.0
    heartbeat_seconds: float = 2.0
    poll_seconds: float = 0.5
    first_retry_seconds: float = 5.0
    longest_retry_seconds: float = 300.0
    crashes: int = 5
    terminate_seconds: float = 10.0
    cluster_seconds: float = 60.0


@dataclass(frozen=True)
class Retention:
    """Which events of jobs are kept in the database; the latest of a job always is.

    Attributes:
        running_events: of a job that has not ended, the latest so many (up to a twentieth more).
        ended_events: of one that has.
        ended_days: after which a job that has ended keeps only its last event.
    """

    running_events: int = 10_000
    ended_events: int = 500
    ended_days: float = 30.0


@dataclass(frozen=True)
class Settings:
    """A service's configuration.

    Attributes:
        root: directory or s3:// prefix whose children are the runs.
        host, port: to listen on; port 0 takes a free one.
        database: URL of SQLAlchemy; None: SQLite in a local ROOT.
        tokens: file of hashed bearer tokens; None: no authentication, for the loopback alone.
        insecure: listen on any host without tokens.
        public_hosts: names under which the service is reached; any, if it has tokens and none are given.
        jobs: that run at the same time in this process; 0: a service that only answers, beside others that work.
        warm: keep a process ready for the next job, some 400 MB each, so that it begins at once.
        data: data sets for `evaluate` and `sensitivity`: name -> specification.
        data_root: where named data sets lie.
        allow_models: architectures as MODULE:CALLABLE whose code is trusted, exactly as written.
        allow_urls: prefixes outside ROOT from which runs may be registered.
        scheduler: address of a Dask scheduler for accumulations and fronts; its workers must see ROOT as this does.
        threads: of the numerics of one job.
        limits, timing, retention: see there.

    Raises:
        UsageError: a host that is not the loopback without tokens, or values that cannot be.
    """

    root: str
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    database: str | None = None
    tokens: Path | None = None
    insecure: bool = False
    public_hosts: tuple[str, ...] = ()
    jobs: int = 1
    warm: bool = True
    data: Mapping[str, str] = field(default_factory=dict)
    data_root: str | None = None
    allow_models: tuple[str, ...] = ()
    allow_urls: tuple[str, ...] = ()
    scheduler: str | None = None
    threads: int | None = None
    limits: Limits = Limits()
    timing: Timing = Timing()
    retention: Retention = Retention()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.tokens is None and not self.insecure:
            raise UsageError(
                "Without tokens the service is for this machine alone.",
                expected="a loopback address, or --tokens FILE",
                got=self.host,
                where="--host",
                remedy="make a token with `streamsparse serve --tokens FILE --new-token NAME`, or say --insecure",
            )
        wrong = [name for name in self.data if not re.fullmatch(NAME_PATTERN, name)]
        if wrong:
            raise UsageError(
                "This name of a data set cannot be part of a request.", expected=NAME_PATTERN, got=wrong[0],
                where="--data",
            )  # fmt: skip
        if self.directory is None and self.database is None:
            raise UsageError(
                "A ROOT in a bucket has no place for the service's database.",
                expected="--database URL",
                got=self.root,
                remedy="give --database sqlite:////var/lib/streamsparse/service.db, or postgresql+psycopg://...",
            )

    @property
    def directory(self) -> Path | None:
        """ROOT on the local disk, or None."""
        return local_path(self.root)

    @property
    def database_url(self) -> str:
        """Of SQLAlchemy."""
        if self.database is not None:
            return self.database
        assert self.directory is not None
        return f"sqlite:///{self.directory.absolute() / STATE_DIRECTORY / 'service.db'}"

    @property
    def accepted_hosts(self) -> tuple[str, ...] | None:
        """Names that a Host header may have; None for any.

        A page of another site can make a browser send requests to the loopback (DNS rebinding), but not with one
        of these names in the Host header. A service with tokens needs no such guard: browsers never add a bearer
        token by themselves.
        """
        if self.public_hosts:
            return (*self.public_hosts, *LOOPBACK_NAMES)
        return LOOPBACK_NAMES if self.tokens is None and not self.insecure else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
