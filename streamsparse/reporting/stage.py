"""The report stage: gather the facts of a run, and write what was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from streamsparse.errors import StorageError, UsageError
from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.report.export import JSON_FILE, csv_files, json_file
from streamsparse.report.facts import Facts
from streamsparse.reporting.gathering import gather
from streamsparse.store import Run, layout

FORMATS = ("html", "json", "csv", "png", "svg")
DEFAULT_FORMATS = ("html", "json", "csv")
HTML_FILE = "report.html"
FIGURES = "figures"
_OURS = {HTML_FILE, JSON_FILE, FIGURES, "layers.csv", "groups.csv", "points.csv", "stages.csv"}


@dataclass(frozen=True)
class Reported:
    """A report on disk.

    Attributes:
        facts: that it shows.
        directory: of its files.
        paths: of the files that were written now.
    """

    facts: Facts
    directory: Path
    paths: tuple[Path, ...]


def report(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    overwrite: bool = False,
    shown_as: str | None = None,
    on_event: OnEvent = ignore,
) -> Reported:
    """Write what is known of a run: an HTML page, its data, its figures. The run itself is only read.

    Every file appears whole, and replaces one of an earlier report; others of an earlier report stay.

    Args:
        run: at any stage; what it does not hold yet is left out, and the report says so.
        out: directory; None: `report` in a run on the local disk.
        formats: of `FORMATS`: "html" is one self-contained page, "json" and "csv" its data, "png" and "svg" its
            figures one by one.
        overwrite: write beside files that are no report.
        shown_as: the run's name in the report, for readers who have no business with where it lies; None: its path
            or URL.
        on_event: hears of progress.

    Raises:
        UsageError: an unknown format, no place to write to, or one that holds something else.
        RunNotFoundError, SchemaVersionError, CorruptDataError: there is no readable run.
        StorageError: the disk is full or refuses.
    """
    wanted = parse_formats(formats)
    run = run if isinstance(run, Run) else Run.at(run)
    run.manifest()  # before a place beside it is thought of
    directory = report_directory(run, out, overwrite=overwrite)
    facts = gather(run, on_event=on_event)
    written = ("report written", datetime.now(UTC).isoformat(timespec="seconds"))
    facts = replace(facts, run=shown_as or facts.run, provenance=(*facts.provenance, written))
    with reporting("report: write", len(wanted), "formats", on_event) as advance:
        return Reported(facts, directory, _write(facts, directory, wanted, advance))


def parse_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """In the order given, each once.

    Raises:
        UsageError: none, or an unknown one.
    """
    wanted = tuple(dict.fromkeys(name.strip() for name in formats if name.strip()))
    if not wanted or not set(wanted) <= set(FORMATS):
        raise UsageError("Unknown format.", expected=",".join(FORMATS), got=",".join(formats), where="--format")
    return wanted


def report_directory(run: Run, out: str | Path | None, *, overwrite: bool = False) -> Path:
    """Where the report goes; nothing is made.

    Raises:
        UsageError: a run in a bucket without `out`, a file, or a directory with something else in it.
    """
    if out is None and run.directory is None:
        raise UsageError(
            "This run is not on the local disk, so its report needs a directory.",
            expected="--out DIR",
            got=run.url,
            remedy="give a local directory for the report",
        )
    directory = Path(out) if out is not None else Path(run.directory or "", layout.REPORT)
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    foreign = [name for name in names if name not in _OURS]
    if directory.exists() and not directory.is_dir():
        foreign = [f"{directory} is a file"]
    if foreign and not (overwrite and directory.is_dir()):
        raise UsageError(
            "This place holds something that is not a report.",
            expected="a directory that does not exist, is empty, or holds a report",
            got=", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""),
            where=directory,
            remedy="choose another --out, or pass --overwrite to write beside what is there",
        )
    return directory


def _write(
    facts: Facts, directory: Path, formats: Sequence[str], advance: Callable[[int], None]
) -> tuple[Path, ...]:
    """All files into a directory beside, then each to its place in one step."""
    partial = directory.with_name(f".{directory.name}.{uuid4().hex[:12]}.partial")
    try:
        try:
            partial.mkdir(parents=True)
            for name in formats:
                _write_format(facts, partial, name)
                advance(1)
            return _moved(partial, directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            "The report could not be written.",
            expected="a directory with room and permission",
            got=error,
            where=directory,
            remedy="free disk space, or choose another --out; every file there is whole",
        ) from error


def _write_format(facts: Facts, partial: Path, name: str) -> None:
    if name == "json":
        (partial / JSON_FILE).write_bytes(json_file(facts))
    elif name == "csv":
        for file, data in csv_files(facts).items():
            (partial / file).write_bytes(data)
    elif name == "html":
        from streamsparse.report.page import render_page  # matplotlib takes a second to load

        (partial / HTML_FILE).write_text(render_page(facts), encoding="utf-8", newline="\n")
    else:
        from streamsparse.report.figures import figures, save_figure

        (partial / FIGURES).mkdir(exist_ok=True)
        for figure in figures(facts):
            save_figure(figure, partial / FIGURES / f"{figure.name}.{name}")


def _moved(partial: Path, directory: Path) -> tuple[Path, ...]:
    paths = []
    for source in sorted(path for path in partial.rglob("*") if path.is_file()):
        target = directory / source.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        paths.append(target)
    return tuple(paths)
