"""A checkpoint's files, on the disk (opened without following links) or in a bucket, and the tar of all of them.

The tar is deterministic (names in order, no times, no owners), so that it has a size before it is made, a digest,
and ranges: a download of it resumes like that of a file. It is the same tar wherever the files lie.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from streamsparse.errors import StorageError
from streamsparse.service.problems import not_found
from streamsparse.service.schemas.names import NAME_PATTERN
from streamsparse.store import Run
from streamsparse.store.objects import ObjectReader, StoredObject

_HASH_BYTES = 2**20
_DIGESTS_KEPT = 4096
_BLOCK = tarfile.BLOCKSIZE


class OpenedFile(Protocol):
    """A file that stays what it is while it is read."""

    @property
    def name(self) -> str:
        """Without its directory."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def identity(self) -> Hashable:
        """Another one once the content is another."""

    def read_at(self, size: int, position: int) -> bytes:
        """At most `size` bytes from a position on, at least one unless it is at the end."""

    def close(self) -> None:
        """Give it back; again is nothing."""


@dataclass(frozen=True)
class Identity:
    """Of a file as it is on the disk now."""

    device: int
    inode: int
    size: int
    modified: int


@dataclass(eq=False)
class OpenFile:
    """A regular file that stays what it is, whatever happens to its name."""

    name: str
    handle: int
    identity: Identity

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity.size

    def read_at(self, size: int, position: int) -> bytes:
        """At most `size` bytes from a position on."""
        return os.pread(self.handle, size, position)

    def close(self) -> None:
        """Give it back; again is nothing."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            with suppress(OSError):
                os.close(handle)


class OpenObject(ObjectReader):
    """One version of an object in a bucket."""

    def __init__(self, run: Run, stored: StoredObject) -> None:
        super().__init__(run, stored)
        self.name, self.size = stored.name, stored.size
        self.identity = (run.url, stored)


def open_file(directory: Path, name: str) -> OpenFile:
    """Open a plain file of a directory below a run, no component of which may be a link.

    Raises:
        Refusal: 404, there is no such regular file.
        StorageError: it cannot be read.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise not_found("file", name)
    try:
        handle = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise StorageError("A file of the checkpoint cannot be read.", got=error.strerror, where=name) from error
    except OSError as error:
        raise not_found("file", name) from error
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise not_found("file", name)
    return OpenFile(name, handle, Identity(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))


def checkpoint_directory(run: Path, name: str) -> Path:
    """Where a checkpoint of a local run lies.

    Raises:
        Refusal: 404, there is none, or it is a link.
    """
    path = run / "checkpoints" / name
    linked = (run / "checkpoints").is_symlink() or path.is_symlink()
    if not re.fullmatch(NAME_PATTERN, name) or linked or not (path / "config.json").is_file():
        raise not_found("checkpoint", name)
    return path


def file_names(directory: Path) -> list[str]:
    """Plain regular files of a directory, sorted; what is still being written is left out."""
    return sorted(
        entry.name
        for entry in os.scandir(directory)
        if entry.is_file(follow_symlinks=False)
        and re.fullmatch(NAME_PATTERN, entry.name)
        and not entry.name.endswith(".partial")
    )


class Digests:
    """SHA-256 of open files and of tars of them, each computed once while the file stays as it is."""

    def __init__(self) -> None:
        self._known: OrderedDict[object, str] = OrderedDict()
        self._lock = threading.Lock()
        self._working: dict[object, threading.Lock] = {}

    def of_file(self, file: OpenedFile) -> str:
        """Hexadecimal."""
        return self._once(file.identity, lambda: _hash(FileView(file)))

    def of_tar(self, files: Sequence[OpenedFile]) -> str:
        """Of the tar of these files, hexadecimal."""
        return self._once(_identity(files), lambda: _hash(TarView(files)))

    def known_tar(self, files: Sequence[OpenedFile]) -> str | None:
        """The same if it was computed before; None without reading anything."""
        with self._lock:
            return self._known.get(_identity(files))

    def _once(self, key: object, compute: Callable[[], str]) -> str:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            working = self._working.setdefault(key, threading.Lock())
        with working:  # the others wait for the first
            with self._lock:
                if key in self._known:
                    return self._known[key]
            found = compute()
            with self._lock:
                self._known[key] = found
                self._working.pop(key, None)
                while len(self._known) > _DIGESTS_KEPT:
                    self._known.popitem(last=False)
            return found


def _identity(files: Sequence[OpenedFile]) -> tuple[Hashable, ...]:
    return tuple((file.name, file.identity) for file in files)


class FileView:
    """Reads an open file with a position of its own."""

    def __init__(self, file: OpenedFile) -> None:
        self._file, self._position = file, 0

    def seek(self, position: int, /) -> None:
        """Go on from here."""
        self._position = position

    def close(self) -> None:
        """Nothing: whoever opened the files closes them."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, as many as there are."""
        piece = self._file.read_at(size, self._position)
        self._position += len(piece)
        return piece


class TarView:
    """Reads the tar of some open files from any position, without ever making it."""

    def __init__(self, files: Sequence[OpenedFile]) -> None:
        self._position = 0
        self._parts: list[tuple[int, bytes | OpenedFile]] = []  # where each begins
        place = 0
        for file in files:
            header = tar_header(file.name, file.size)
            padding = bytes(-file.size % _BLOCK)
            for part, length in ((header, len(header)), (file, file.size), (padding, len(padding))):
                self._parts.append((place, part))
                place += length
        self._parts.append((place, bytes(2 * _BLOCK)))
        self.size = place + 2 * _BLOCK

    def seek(self, position: int, /) -> None:
        """Go on from here."""
        self._position = position

    def close(self) -> None:
        """Nothing: whoever opened the files closes them."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, of one part of the tar at most."""
        for start, part in self._parts:
            length = len(part) if isinstance(part, bytes) else part.size
            inside = self._position - start
            if 0 <= inside < length:
                wanted = min(size, length - inside)
                piece = part[inside : inside + wanted] if isinstance(part, bytes) else part.read_at(wanted, inside)
                self._position += len(piece)
                return piece
        return b""


def tar_header(name: str, size: int) -> bytes:
    """The block before a file's bytes; nothing in it depends on when or by whom it was written."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _hash(stream: FileView | TarView) -> str:
    digest = hashlib.sha256()
    while piece := stream.read(_HASH_BYTES):
        digest.update(piece)
    return digest.hexdigest()
