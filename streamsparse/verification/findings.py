"""What is wrong with a run: problems with a name, an expectation and a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from streamsparse.errors import StreamsparseError
from streamsparse.events import Notice, OnEvent
from streamsparse.intake.captured import Captured
from streamsparse.store import Run

_REMEDY = "restore this part from a copy, or run its stage again with --overwrite"


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        part: of the run, such as "activations".
        key: of the object in the run, with the batch or array where that is known.
        summary: one sentence.
        expected, got: what should be there, and what is; None where the summary says it all.
        remedy: what the user can do.
    """

    part: str
    key: str
    summary: str
    expected: str | None
    got: str | None
    remedy: str | None


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        run: the run.
        captured: its manifest, parsed; None if it is damaged, and then nothing can be compared with it.
        on_event: hears of progress and notes.
    """

    run: Run
    captured: Captured | None
    on_event: OnEvent


@dataclass
class Findings:
    """Collects the problems of one part of the run; every check goes on after one."""

    part: str
    on_event: OnEvent
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: str, summary: str, *, expected: object, got: object, remedy: str) -> None:
        """Report a problem."""
        self.problems.append(Problem(self.part, key, summary, str(expected), str(got), remedy))

    def expect(self, holds: bool, key: str, summary: str, *, expected: object, got: object, remedy: str) -> bool:
        """Report a problem unless something holds; returns whether it does."""
        if not holds:
            self.add(key, summary, expected=expected, got=got, remedy=remedy)
        return holds

    @contextmanager
    def guarding(self, key: str, remedy: str | None = None) -> Iterator[None]:
        """Turn any failure of the body into a problem: damaged input may break a reader in any way.

        Args:
            key: of what the body reads.
            remedy: None for that of the error.
        """
        try:
            yield
        except StreamsparseError as error:
            where = error.where or key
            where = where if key in where else f"{key}: {where}"
            self.problems.append(
                Problem(self.part, where, error.summary, error.expected, error.got, remedy or error.remedy)
            )
        except Exception as error:  # noqa: BLE001  see above
            self.add(
                key, "This part does not have the form that it was written in.",
                expected="the entries and types of this layout", got=f"{type(error).__name__}: {error}",
                remedy=remedy or _REMEDY,
            )  # fmt: skip

    def note(self, message: str) -> None:
        """Say something that is no problem."""
        self.on_event(Notice(f"verify {self.part}", message))


def names_below(run: Run, prefix: str) -> list[str]:
    """Names directly below a prefix, without the documents that zarr keeps of its own groups there."""
    return [name for name in run.documents.names(prefix) if name != "zarr.json"]
