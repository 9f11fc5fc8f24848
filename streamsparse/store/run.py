"""A run: one directory (later: one bucket prefix) that holds everything from capture to checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.abc.store import Store

from streamsparse.errors import CorruptDataError, RunNotFoundError, SchemaVersionError, StageMissingError
from streamsparse.store import layout
from streamsparse.store.activations import ActivationReader, ActivationWriter
from streamsparse.store.documents import Documents
from streamsparse.store.locks import locked
from streamsparse.store.opening import local_path, open_store
from streamsparse.store.records import Records
from streamsparse.store.stream import StreamPlan


@dataclass(frozen=True)
class Run:
    """Access to a run. Opening one creates nothing.

    Attributes:
        url: path or URL; `memory://` keeps the run in this process.
    """

    url: str
    store: Store = field(repr=False)
    documents: Documents = field(repr=False)
    records: Records = field(repr=False)

    @classmethod
    def at(cls, url: str | Path) -> Run:
        """The run at a path or URL, whether it exists or not."""
        store = open_store(str(url))
        return cls(str(url), store, Documents(store), Records(store))

    @property
    def directory(self) -> Path | None:
        """On the local disk, or None."""
        return None if self.url == "memory://" else local_path(self.url)

    @property
    def exists(self) -> bool:
        """Whether a capture has begun here."""
        return self.documents.exists(layout.MANIFEST)

    def manifest(self) -> dict[str, Any]:
        """What was captured.

        Raises:
            RunNotFoundError: there is no run here.
            SchemaVersionError: it was written by another version of the layout.
            CorruptDataError: it is not readable.
        """
        found = self.documents.read_json(layout.MANIFEST)
        if found is None:
            raise RunNotFoundError(
                "There is no run here.",
                expected=f"a directory with {layout.MANIFEST}",
                got="an existing directory without one" if self._occupied() else "nothing",
                where=self.url,
                remedy="check the path, or begin a run with `streamsparse capture`",
            )
        if found.get("schema") != layout.SCHEMA_VERSION:
            raise SchemaVersionError(
                "This run was written by another version of streamsparse.",
                expected=f"layout version {layout.SCHEMA_VERSION}",
                got=f"layout version {found.get('schema')!r}",
                where=f"{self.url}/{layout.MANIFEST}",
                remedy="use the version named in the manifest's 'versions', or capture again into a new RUN",
            )
        return found

    def begin(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest unless there is one; returns the one that is there."""
        if not self.exists:
            self.documents.write_json(layout.MANIFEST, {"schema": layout.SCHEMA_VERSION, **manifest})
        return self.manifest()

    def weights(self) -> bytes:
        """The original weights as safetensors bytes.

        Raises:
            CorruptDataError: they are missing.
        """
        found = self.documents.read(layout.WEIGHTS)
        if found is None:
            raise CorruptDataError(
                "The run's original weights are missing.",
                expected=layout.WEIGHTS,
                got="nothing",
                where=self.url,
                remedy="restore the file from a copy, or capture again",
            )
        return found

    def writer(self, plan: StreamPlan) -> ActivationWriter:
        """Begin or resume a shard of activations."""
        return ActivationWriter(self.store, plan)

    def write_checkpoint(self, name: str, files: Mapping[str, bytes], *, last: str) -> str:
        """Replace a checkpoint's files, the one named `last` at the end; returns their prefix."""
        prefix = layout.checkpoint_prefix(name)
        self.documents.delete_key(f"{prefix}/{last}")
        self.documents.delete(prefix)
        for file in sorted(files, key=lambda file: file == last):
            self.documents.write(f"{prefix}/{file}", files[file])
        return prefix

    def read_checkpoint(self, name: str) -> dict[str, bytes]:
        """A checkpoint's files.

        Raises:
            StageMissingError: there is none of this name.
        """
        prefix = layout.checkpoint_prefix(name)
        keys = self.documents.keys(f"{prefix}/")
        found = {key.rpartition("/")[2]: self.documents.read(key) for key in keys}
        if not found:
            raise StageMissingError(
                f"This run holds no checkpoint '{name}'.",
                expected=self.documents.names("checkpoints") or "a written checkpoint",
                got="nothing",
                where=self.url,
                remedy="run `streamsparse write` first, or name one of those that are there",
            )
        return {file: data for file, data in found.items() if data is not None}

    def reader(self, stream: str = layout.ORIGINAL_STREAM) -> ActivationReader:
        """Read a stream of activations."""
        return ActivationReader(self.store, stream)

    def lock(self, name: str = "run", *, shared: bool = False) -> AbstractContextManager[None]:
        """Keep other processes away while a stage writes; see `store.locks`."""
        return locked(self.directory, name, shared=shared)

    def clear(self) -> None:
        """Remove everything in the run, its manifest first, so that no half of it is taken for a whole."""
        self.documents.delete_key(layout.MANIFEST)
        for prefix in ("activations", "statistics", "solution", "checkpoints", "evaluations", "model"):
            self.documents.delete(prefix)

    def _occupied(self) -> bool:
        return self.directory is not None and self.directory.exists()
