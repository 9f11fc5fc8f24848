"""Every error that streamsparse raises on purpose.

    StreamsparseError
    ├── InputError                     what the user gave cannot be used          exit status 2
    │   ├── UsageError                 arguments that contradict or do not parse
    │   │   └── BudgetError            a budget that no architecture meets
    │   ├── ModelError                 the model cannot be built, traced or pruned
    │   │   └── WeightsError           weights missing, corrupt, or of other shapes
    │   ├── DataError                  the data set is missing, empty or of wrong shapes
    │   ├── ActivationError            captured values that cannot be used
    │   │   ├── NonFiniteError         NaN or infinite activations
    │   │   └── HalfOverflowError      values beyond the range of float16
    │   ├── StatisticsError            statistics that cannot be merged or solved
    │   ├── CheckpointError            a checkpoint that cannot be loaded safely
    │   └── RunError                   the run directory does not fit the request
    │       ├── RunNotFoundError       no run there
    │       ├── RunLockedError         another process is using it
    │       ├── SchemaVersionError     written by another version of the layout
    │       ├── RunMismatchError       a different model, data set or setting
    │       ├── StageMissingError      an earlier stage has not finished
    │       └── CorruptDataError       checksum failed, truncated or missing chunks
    └── ResourceError                  the machine or the cluster failed           exit status 1
        ├── StorageError               disk full, permission denied, store unreachable
        ├── MemoryLimitError           the plan does not fit the memory limit
        └── ClusterError               the Dask scheduler or its workers are gone

A message says what was expected, what was got, where, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class StreamsparseError(Exception):
    """Root of the tree.

    Args:
        summary: one sentence that says what went wrong.
        expected: what would have been right.
        got: what was found instead.
        where: the layer, file, batch or option concerned.
        remedy: what the user can do now.
    """

    exit_status: ClassVar[int] = 1

    def __init__(
        self,
        summary: str,
        *,
        expected: object = None,
        got: object = None,
        where: object = None,
        remedy: str | None = None,
    ) -> None:
        self.summary = summary
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)
        self.where = None if where is None else str(where)
        self.remedy = remedy
        super().__init__(summary)

    def __str__(self) -> str:
        parts = [("expected", self.expected), ("got", self.got), ("where", self.where), ("to do", self.remedy)]
        return "\n".join([self.summary, *(f"  {label}: {text}" for label, text in parts if text is not None)])

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (Dask workers) whole."""
        details = (self.summary, self.expected, self.got, self.where, self.remedy)
        return _rebuild, (type(self), *details)

    def to_json(self) -> dict[str, str | None]:
        """The error as a flat object for `--json` and the HTTP service."""
        return {
            "error": type(self).__name__,
            "summary": self.summary,
            "expected": self.expected,
            "got": self.got,
            "where": self.where,
            "remedy": self.remedy,
        }


def _rebuild(
    cls: type[StreamsparseError],
    summary: str,
    expected: str | None,
    got: str | None,
    where: str | None,
    remedy: str | None,
) -> StreamsparseError:
    return cls(summary, expected=expected, got=got, where=where, remedy=remedy)


class InputError(StreamsparseError):
    """What the user gave cannot be used; nothing was written."""

    exit_status = 2


class UsageError(InputError):
    """Arguments that contradict each other or do not parse."""


class BudgetError(UsageError):
    """A budget that no architecture meets, or that does not parse."""


class ModelError(InputError):
    """The model cannot be built, traced or pruned."""


class WeightsError(ModelError):
    """Weights that are missing, corrupt, or of other shapes than the model's."""


class DataError(InputError):
    """The data set is missing, empty or of wrong shapes."""


class ActivationError(InputError):
    """Captured activations that cannot be used."""


class NonFiniteError(ActivationError):
    """NaN or infinite values among the activations."""


class HalfOverflowError(ActivationError):
    """Activations beyond the range of float16 (65,504)."""


class StatisticsError(InputError):
    """Statistics that cannot be merged or solved."""


class CheckpointError(InputError):
    """A checkpoint that cannot be loaded: tampered, incomplete, or of another architecture."""


class RunError(InputError):
    """The run directory does not fit the request."""


class RunNotFoundError(RunError):
    """There is no run at this path or URL."""


class RunLockedError(RunError):
    """Another process is using the run."""


class SchemaVersionError(RunError):
    """The run was written by another version of the storage layout."""


class RunMismatchError(RunError):
    """The run was made with a different model, data set or setting."""


class StageMissingError(RunError):
    """An earlier stage has not finished."""


class CorruptDataError(RunError):
    """Stored data that fails its checksum, is truncated or is missing."""


class ResourceError(StreamsparseError):
    """The machine or the cluster failed; what was committed is kept and a second try resumes."""


class StorageError(ResourceError):
    """Disk full, permission denied, or the store cannot be reached."""


class MemoryLimitError(ResourceError):
    """The plan does not fit the memory limit."""


class ClusterError(ResourceError):
    """The Dask scheduler or its workers cannot be reached."""
