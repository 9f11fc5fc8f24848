"""Which run a name means: a child of ROOT, or one that was registered by its URL. No client's path is ever opened.

name   [A-Za-z0-9][A-Za-z0-9._-]{0,99}      a directory below ROOT (never a link), or a prefix of its bucket
URL    inside ROOT, or inside a prefix that the server was started with; s3 endpoints are the server's own
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError

from streamsparse.errors import ModelError, RunNotFoundError, StorageError, UsageError
from streamsparse.service.jobs.database import registered_runs
from streamsparse.service.problems import Refusal, not_found
from streamsparse.service.schemas.names import NAME_PATTERN
from streamsparse.service.settings import STATE_DIRECTORY, Settings
from streamsparse.store import Run, layout
from streamsparse.store.bucket import SCHEME, parse_address
from streamsparse.store.opening import local_path

REGISTRIES = ("torchvision:", "timm:")
"""Architectures by name: building one runs no code of a client."""


@dataclass(frozen=True)
class NamedRun:
    """A run that a client may name.

    Attributes:
        name: its identifier in the API.
        run: access to it.
        registered: known by a registered URL.
    """

    name: str
    run: Run
    registered: bool

    @property
    def url(self) -> str:
        """The same for every name of one run: what leases are on."""
        directory = self.run.directory
        return self.run.url.rstrip("/") if directory is None else str(directory.resolve())


class Root:
    """The runs that a service knows."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings, self._engine = settings, engine
        self.directory = settings.directory

    def names(self) -> list[str]:
        """Of all runs, sorted."""
        names = [name for name in self._below() if self._exists(name)]
        with self._engine.connect() as connection:
            registered = connection.execute(select(registered_runs.c.name)).scalars().all()
        return sorted({*names, *registered})

    def find(self, name: str) -> NamedRun:
        """The run of this name.

        Raises:
            Refusal: 404, there is none, or something that is not a plain directory.
        """
        if not re.fullmatch(NAME_PATTERN, name):
            raise not_found("run", name, "GET /api/v1/runs lists them")
        with self._engine.connect() as connection:
            query = select(registered_runs.c.url).where(registered_runs.c.name == name)
            url = connection.execute(query).scalar()
        if url is not None:
            return NamedRun(name, Run.at(self._checked(url)), registered=True)
        if not self._exists(name):
            raise not_found("run", name, "GET /api/v1/runs lists them")
        return NamedRun(name, Run.at(self.place(name)), registered=False)

    def register(self, name: str, url: str) -> NamedRun:
        """Know a captured run by a name.

        Raises:
            UsageError: the URL is outside ROOT and the allowed prefixes.
            Refusal: 409, the name is taken.
            RunNotFoundError: there is no run.
        """
        checked = self._checked(url)
        run = Run.at(checked)
        try:
            run.manifest()
        except RunNotFoundError as error:
            raise RunNotFoundError(
                "There is no run at this URL.", expected="a captured run", got="nothing", where="url",
                remedy="capture it first",
            ) from error  # fmt: skip
        self.require_free(name)
        try:
            with self._engine.begin() as connection:
                connection.execute(registered_runs.insert().values(name=name, url=checked, created=time.time()))
        except IntegrityError as error:
            raise name_taken(name) from error
        return NamedRun(name, run, registered=True)

    def require_free(self, name: str) -> None:
        """
        Raises:
            Refusal: 409, a run or anything else has this name.
        """
        with self._engine.connect() as connection:
            known = connection.execute(select(registered_runs.c.name).where(registered_runs.c.name == name)).first()
        place = None if self.directory is None else self.directory / name
        there = self._exists(name) if place is None else os.path.lexists(place)
        if known is not None or there:
            raise name_taken(name)

    def remove(self, named: NamedRun) -> None:
        """Forget a registered run, or delete a run of ROOT with all that it holds."""
        if named.registered:
            with self._engine.begin() as connection:
                connection.execute(delete(registered_runs).where(registered_runs.c.name == named.name))
            return
        if named.run.directory is None:
            named.run.clear()
            return
        try:  # moved away in one step: nobody sees half of it
            grave = self.state("trash") / f"{named.name}-{uuid4().hex[:8]}"
            named.run.directory.rename(grave)
            shutil.rmtree(grave)
        except OSError as error:
            raise StorageError(
                "The run could not be deleted whole.", got=error.strerror, where=named.name
            ) from error

    def reachable(self) -> None:
        """
        Raises:
            StorageError: ROOT cannot be read.
        """
        if self.directory is None:
            Run.at(self.settings.root).documents.names("")
        elif not os.access(self.directory, os.R_OK | os.X_OK):
            raise StorageError("ROOT cannot be read.", expected="a directory", got="none, or no permission")

    def state(self, part: str) -> Path:
        """A directory of the service's own beside the runs; made if it is missing.

        Raises:
            UsageError: ROOT is in a bucket.
        """
        if self.directory is None:
            raise UsageError("This needs a ROOT on a local disk.", expected="a directory", got=self.settings.root)
        path = self.directory / STATE_DIRECTORY / part
        path.mkdir(parents=True, exist_ok=True)
        return path

    def scratch(self) -> Path:
        """Where uploads are unpacked: beside the runs of a disk, so that a rename makes a run of one; for a bucket
        in the directory of temporary files, which TMPDIR names.
        """
        if self.directory is not None:
            return self.state("uploads")
        path = Path(tempfile.gettempdir()) / f"streamsparse-uploads-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise StorageError("The directory for uploads is not this user's.", got="another owner", where=path)
        return path

    def place(self, name: str) -> str:
        """Path or URL of a run of ROOT that has this checked name, whether it exists or not."""
        if self.directory is not None:
            return str(self.directory / name)
        return f"{self.settings.root.rstrip('/')}/{name}"

    def _below(self) -> Iterator[str]:
        if self.directory is None:
            names = Run.at(self.settings.root).documents.names("")
        else:
            names = [entry.name for entry in os.scandir(self.directory)] if self.directory.is_dir() else []
        return (name for name in names if re.fullmatch(NAME_PATTERN, name))

    def _exists(self, name: str) -> bool:
        """Whether a run of this checked name is there; a link, or a run made of links, is none."""
        if self.directory is None:
            return Run.at(self.place(name)).exists
        path = self.directory / name
        if path.is_symlink() or not (path / layout.MANIFEST).is_file():
            return False
        return not any(entry.is_symlink() for entry in os.scandir(path))

    def _checked(self, url: str) -> str:
        """A client's URL or path as it may be opened."""
        allowed = (self.settings.root, *self.settings.allow_urls)
        if not re.fullmatch(r"[A-Za-z0-9._/:-]{1,1000}", url) or ".." in url.split("/"):
            raise _outside(url)
        if url.startswith(f"{SCHEME}://"):
            return self._checked_bucket(url, allowed)
        if "://" in url or url.startswith(("file:", f"{SCHEME}:")) or self.directory is None:
            raise _outside(url)
        path = (self.directory / url).resolve()  # an absolute one stays what it is
        prefixes = [local_path(prefix) for prefix in allowed if "://" not in prefix]
        if not any(prefix is not None and path.is_relative_to(prefix.resolve()) for prefix in prefixes):
            raise _outside(url)
        if STATE_DIRECTORY in path.parts or path == self.directory.resolve():
            raise _outside(url)
        return str(path)

    @staticmethod
    def _checked_bucket(url: str, allowed: tuple[str, ...]) -> str:
        asked = parse_address(url)
        for prefix in allowed:
            if prefix.startswith(f"{SCHEME}://"):
                inside = parse_address(prefix)
                below = asked.prefix.startswith(f"{inside.prefix}/") if inside.prefix else bool(asked.prefix)
                if asked.bucket == inside.bucket and below:
                    return url.rstrip("/")
        raise _outside(url)


def require_known_model(settings: Settings, run: Run) -> None:
    """Refuse a run whose model is code: its manifest may have been written by a client.

    Raises:
        ModelError: an architecture that is not of a registry, nor one that the server was started with.
    """
    spec = run.manifest()["model"].get("spec")
    if spec is None or (isinstance(spec, str) and (spec.startswith(REGISTRIES) or spec in settings.allow_models)):
        return
    raise ModelError(
        "The service does not run code that a run names.",
        expected="a model of a registry, such as torchvision:resnet18",
        got=str(spec)[:200],
        where="the run's manifest",
        remedy=f"if you trust it, start the service with --allow-model '{str(spec)[:200]}'",
    )


def _outside(url: str) -> UsageError:
    return UsageError(
        "This URL is not one that the service may open.",
        expected="a path or s3:// URL inside ROOT, or inside a prefix of --allow-url",
        got=url[:200],
        where="url",
        remedy="move the run under ROOT, or start the service with --allow-url PREFIX",
    )


def name_taken(name: str) -> Refusal:
    """409 for a name that cannot be given to a new run."""
    return Refusal(409, "NameTaken", "Something has this name already.", got=name, remedy="choose another name")
