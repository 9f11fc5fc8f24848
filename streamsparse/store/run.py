"""A run: one directory or one prefix of a bucket that holds everything from capture to checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.abc.store import Store

from streamsparse.errors import (
    CorruptDataError,
    RunError,
    RunNotFoundError,
    SchemaVersionError,
    StageMissingError,
)
from streamsparse.store import layout
from streamsparse.store.activations import ActivationReader, ActivationWriter
from streamsparse.store.batches import read_plans
from streamsparse.store.bucket import Bucket
from streamsparse.store.documents import Documents
from streamsparse.store.locks import locked
from streamsparse.store.opening import local_path, open_store
from streamsparse.store.records import Records
from streamsparse.store.stream import StreamPlan

_UNFINISHED = ".partial"
"""Ending of the temporary files that zarr renames when they are whole; a kill leaves them behind."""


@dataclass(frozen=True)
class Run:
    """Access to a run. Opening one creates nothing.

    Attributes:
        url: path, `file://` URL or `s3://bucket/prefix`; `memory://` keeps the run in this process.
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
        return local_path(self.url)

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
                expected=f"a directory or prefix with {layout.MANIFEST}",
                got="a place without one" if self._occupied() else "nothing",
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

    def begin(self, manifest: dict[str, Any], weights: bytes) -> dict[str, Any]:
        """Write the original weights and then the manifest, unless there is one; returns the one that is there.

        Of a run whose clearing was killed nothing is taken over.
        """
        with self.lock("begin", wait=True):  # shards begin at the same time
            self.finish_clearing()
            if not self.exists:
                self.documents.write(layout.WEIGHTS, weights)
                model = {**manifest["model"], "weights_sha256": hashlib.sha256(weights).hexdigest()}
                whole = {"schema": layout.SCHEMA_VERSION, **manifest, "model": model}
                self.documents.write_json(layout.MANIFEST, whole)
        return self.manifest()

    def weights(self) -> bytes:
        """The original weights as safetensors bytes.

        Raises:
            CorruptDataError: they are missing, or not those of the manifest.
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
        expected, got = self.manifest()["model"].get("weights_sha256"), hashlib.sha256(found).hexdigest()
        if got != expected:
            raise CorruptDataError(
                "The run's original weights are damaged.",
                expected=f"SHA-256 {expected}",
                got=got,
                where=f"{self.url}/{layout.WEIGHTS}",
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
        names = [key.rpartition("/")[2] for key in keys if not key.endswith(_UNFINISHED)]
        found = {name: self.documents.read(f"{prefix}/{name}") for name in names}
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

    def plans(self, stream: str) -> list[StreamPlan]:
        """The plans of a stream's shards that were begun; none if there is no such stream."""
        return list(read_plans(self.documents, stream).values())

    def lock(self, name: str = "run", *, shared: bool = False, wait: bool = False) -> AbstractContextManager[None]:
        """Keep other processes away while a stage writes; see `store.locks` and, for a bucket, `store.leases`."""
        if isinstance(self.store, Bucket):
            from streamsparse.store.leases import leased

            return leased(self.store, name, shared=shared, wait=wait)
        return locked(self.directory, name, shared=shared, wait=wait)

    def require_own(self) -> None:
        """Refuse a place that holds something else; what a killed beginning or clearing left is ours.

        Raises:
            RunError: files that are not a run's; nothing is touched.
        """
        if self._is_marked(layout.MANIFEST) or self._is_marked(layout.CLEARING):
            return
        names = self._names()
        ours = ".run.lock" in names if self.directory is not None else set(names) <= set(layout.BEGUN_IN_BUCKET)
        if names and not ours:
            raise RunError(
                "This directory or prefix holds something that is not a run.",
                expected="one that is empty or does not exist, or a run",
                got=", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
                where=self.url,
                remedy="choose another RUN; nothing was touched",
            )

    def clear(self) -> None:
        """Remove everything in the run. What a kill leaves of it is removed before anything is begun here."""
        with self.lock("begin", wait=True):
            self.documents.write_json(layout.CLEARING, {"schema": layout.SCHEMA_VERSION})
            self._remove()

    def finish_clearing(self) -> None:
        """Remove what a clearing that was killed has left, if one was. The caller holds the lock `begin`."""
        if not self._is_marked(layout.CLEARING):
            return
        if self.exists:  # killed before the first deletion: the run is whole
            self.documents.delete_key(layout.CLEARING)
        else:
            self._remove()

    def _remove(self) -> None:
        """The manifest first, so that no half of the run is taken for a whole; what says that it is half, last."""
        self.documents.delete_key(layout.MANIFEST)
        for prefix in layout.CONTENTS:
            self.documents.delete(prefix)
        self.documents.delete_key(layout.ROOT_GROUP)
        self.documents.delete_key(layout.CLEARING)

    def _is_marked(self, key: str) -> bool:
        """Whether a document of ours is there, and not another's of the same name."""
        found = self.documents.read_json(key)
        return found is not None and "schema" in found

    def _names(self) -> list[str]:
        """What lies directly in the run's place."""
        if self.directory is None:
            return self.documents.names("")
        return sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []

    def _occupied(self) -> bool:
        return bool(self._names()) if self.directory is None else self.directory.is_dir()
