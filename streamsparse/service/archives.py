"""A statistics archive of a client: unpacked with suspicion, checked, and only then a run.

What a site hands over is `manifest.json`, the original weights and `statistics/` of a run, as a tar (plain or
gzip) or a zip. Nothing else is taken: no activations, no solution, no checkpoint.

    body ──bounded──> file ──members: plain names, regular, bounded──> directory ──checks──> a run, see `placing`
"""

from __future__ import annotations

import json
import math
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from streamsparse.errors import CorruptDataError, RunError
from streamsparse.service.problems import Refusal
from streamsparse.service.settings import Limits
from streamsparse.store import Run, layout
from streamsparse.verification import verify_run

_COPY_BYTES = 2**20
_COMPONENT = re.compile(r"[A-Za-z0-9@%_][A-Za-z0-9@%._~+=!, -]{0,254}")
_TAKEN = (layout.MANIFEST, layout.WEIGHTS)
_DEEPEST = 16
_CODECS = ({"bytes"}, {"bytes", "crc32c"}, {"crc32c"})
"""Of statistics, as streamsparse writes them: nothing that unpacks to more than there is."""


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name as written, and its bytes as claimed."""

    name: str
    size: int
    regular: bool
    source: Any


def unpack(archive: Path, into: Path, limits: Limits) -> None:
    """Unpack what a run of statistics holds into a new directory.

    Raises:
        Refusal: 422 no archive, or a member that is not allowed; 413 too many or too large ones.
    """
    into.mkdir(parents=True)
    seen: set[str] = set()
    total = 0
    try:
        with _opened(archive) as (members, read):
            for member in members:
                if len(seen) >= limits.unpacked_files:
                    raise _too_large(f"more than {limits.unpacked_files} files")
                key = _checked_key(member)
                if key in seen:
                    raise _bad("a name that is there twice", member.name)
                seen.add(key)
                target = into / key
                target.parent.mkdir(parents=True, exist_ok=True)
                with read(member) as source, target.open("xb") as sink:
                    total += _copy(source, sink, limits.unpacked_bytes - total)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _bad("a whole tar or zip", type(error).__name__) from error
    except (OSError, ValueError) as error:
        raise _bad("an archive that unpacks", type(error).__name__) from error


def check(directory: Path) -> None:
    """Read and check all that was unpacked.

    Raises:
        RunError: no run of this layout, or no statistics.
        CorruptDataError: something is damaged, or not as streamsparse writes it.
    """
    for path in sorted(directory.rglob("zarr.json")):
        _check_array(path, directory)
    run = Run.at(directory)
    run.manifest()
    problems = verify_run(run)
    if problems:
        raise CorruptDataError(
            "The archive is damaged.", expected=problems[0].expected or "a whole run of statistics",
            got=f"{problems[0].summary} {problems[0].got or ''}".strip(), where=problems[0].key,
            remedy="pack it again; `streamsparse inspect RUN --verify` names what is wrong",
        )  # fmt: skip
    if not run.documents.names("statistics"):
        raise RunError("The archive holds no statistics.", expected="statistics/ of a run", got="none")


def _check_array(path: Path, directory: Path) -> None:
    """Refuse array metadata whose array would not fit what is stored: it is allocated before it is read."""
    where = str(path.parent.relative_to(directory))
    try:
        about = json.loads(path.read_bytes())
        if about["node_type"] == "group":
            return
        codecs = {codec["name"] for codec in about["codecs"]}
        shape = [int(extent) for extent in about["shape"]]
        chunk = [int(extent) for extent in about["chunk_grid"]["configuration"]["chunk_shape"]]
        fits = (
            all(0 < one <= max(whole, 1) for one, whole in zip(chunk, shape, strict=True))
            and min(shape, default=0) >= 0
        )
        size = math.prod(shape) * _item_bytes(about["data_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, "an array's metadata", type(error).__name__) from error
    stored = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    if codecs not in _CODECS:
        raise _damaged(where, "uncompressed arrays, as streamsparse writes statistics", ", ".join(sorted(codecs)))
    if not fits or size > stored:
        raise _damaged(where, f"an array of at most the {stored} bytes that are there", f"{size} bytes")


def _item_bytes(dtype: Any) -> int:
    match = re.fullmatch(r"(?:float|int|uint)(8|16|32|64)|(bool)", str(dtype))
    if match is None:
        raise ValueError(dtype)
    return 1 if match[2] else int(match[1]) // 8


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[Iterator[Member], Any]]:
    """The members of an archive, and how to read one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(opened), lambda member: opened.open(member.source)
        return
    with tarfile.open(archive, "r|*" if _is_gzip(archive) else "r|") as stream:
        yield _tar_members(stream), lambda member: _extracted(stream, member.source)


def _is_gzip(archive: Path) -> bool:
    with archive.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _extracted(stream: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    found = stream.extractfile(info)
    if found is None:
        raise _bad("regular files", info.name)
    return found


def _tar_members(stream: tarfile.TarFile) -> Iterator[Member]:
    for info in stream:
        if not info.isdir():
            yield Member(info.name, info.size, info.isreg() and not info.issparse(), info)
        else:
            _checked_components(info.name.rstrip("/"))


def _zip_members(opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        if info.is_dir():
            _checked_components(info.filename.rstrip("/"))
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG) and not info.flag_bits & 0x1
        yield Member(info.filename, info.file_size, plain, info)


def _checked_key(member: Member) -> str:
    """The key in the run that a member is for."""
    parts = _checked_components(member.name)
    key = "/".join(parts)
    if not member.regular:
        raise _bad("regular files: no links, devices, sparse or encrypted ones", member.name)
    if key not in _TAKEN and parts[0] != "statistics":
        raise _bad(f"{', '.join(_TAKEN)} and statistics/", member.name)
    return key


def _checked_components(name: str) -> list[str]:
    parts = name.removeprefix("./").split("/") if name not in ("", ".") else []
    if len(parts) > _DEEPEST or any(not _COMPONENT.fullmatch(part) or part == ".." for part in parts):
        raise _bad("plain names below the run, such as statistics/original/...", name)
    return parts


def _copy(source: IO[bytes], sink: IO[bytes], room: int) -> int:
    """Bytes that are there, whatever the archive claimed."""
    copied = 0
    while piece := source.read(_COPY_BYTES):
        copied += len(piece)
        if copied > room:
            raise _too_large("more bytes than may be unpacked")
        sink.write(piece)
    return copied


def discard(path: Path) -> None:
    """Remove what an upload left, if anything."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _bad(expected: str, got: str) -> Refusal:
    title = "This archive is not taken."
    return Refusal(422, "BadArchive", title, expected=expected, got=ascii(got)[:200], where="the archive")


def _too_large(got: str) -> Refusal:
    return Refusal(413, "TooLarge", "The archive unpacks to more than is allowed.", got=got, where="the archive")


def _damaged(where: str, expected: str, got: str) -> CorruptDataError:
    return CorruptDataError(
        "The archive is not as streamsparse packs one.", expected=expected, got=got, where=where
    )
