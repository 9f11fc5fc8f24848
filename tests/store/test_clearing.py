"""A run whose removal is killed: whatever is left of it, the same command goes on, and nothing of it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from streamsparse.errors import RunError, RunNotFoundError, StageMissingError
from streamsparse.store import Run, layout
from streamsparse.store.documents import Documents
from streamsparse.store.solution import commit_solution, read_solution
from tests.object_server import Place
from tests.store.test_run import MANIFEST, solution, weights

A, B = {**MANIFEST, "note": "A"}, {**MANIFEST, "note": "B"}

Fresh = Callable[[], Run]
"""Makes a new place, and opens it."""


class KilledError(BaseException):
    """In the place of a signal."""


@pytest.fixture(params=["directory", "memory"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Fresh:
    numbers = count()
    return lambda: Run.at(tmp_path / str(next(numbers)) if request.param == "directory" else "memory://")


def fill(run: Run) -> None:
    """A run that has come through all stages, in short."""
    with run.lock():
        run.begin(A, b"weights of A")
        for prefix in layout.CONTENTS:
            if prefix != "model":
                run.documents.write_json(f"{prefix}/one.json", {})
                run.documents.write_json(f"{prefix}/two.json", {})
        run.records.write(layout.statistics_key("original", "next"), {}, {"count": np.ones(3)})
        commit_solution(run, solution(3), weights(1.5))


def keys_of(run: Run) -> list[str]:
    """All that a run holds but its locks."""
    return [key for key in run.documents.keys("") if not key.startswith("locks/") and not key.endswith(".lock")]


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, survive: int) -> Iterator[list[str]]:
    """Survive so many deletions, and be killed in the next, a prefix being half deleted; lists those that began."""
    began: list[str] = []
    key_now, prefix_now = Documents.delete_key, Documents.delete

    def delete_key(self: Documents, key: str) -> None:
        began.append(key)
        if len(began) > survive:
            raise KilledError
        key_now(self, key)

    def delete(self: Documents, prefix: str) -> None:
        began.append(prefix)
        if len(began) > survive:
            for key in self.keys(f"{prefix}/")[::2]:
                key_now(self, key)
            raise KilledError
        prefix_now(self, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(Documents, "delete_key", delete_key)
        patch.setattr(Documents, "delete", delete)
        yield began


def kill_clearing(run: Run, monkeypatch: pytest.MonkeyPatch, survive: int) -> bool:
    """Fill and clear; whether the kill came before the end."""
    fill(run)
    with killed(monkeypatch, survive) as began:
        try:
            run.clear()
        except KilledError:
            return True
    assert {layout.MANIFEST, *layout.CONTENTS} <= set(began)
    return False


def require_only(run: Run, manifest: dict[str, object]) -> None:
    """It is this run, and nothing of another is in it."""
    assert run.manifest()["note"] == manifest["note"]
    assert run.weights() == b"weights of B"
    assert keys_of(run) == [layout.MANIFEST, layout.WEIGHTS]
    with pytest.raises(StageMissingError):
        read_solution(run)


def each_kill(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch, check: Callable[[Run, int], None], step: int = 1
) -> None:
    for survive in count(0, step):
        run = fresh()
        if not kill_clearing(run, monkeypatch, survive):
            assert keys_of(run) == []
            assert survive > len(layout.CONTENTS)
            return
        check(run, survive)


def test_the_same_command_goes_on(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `capture --overwrite` does: whatever there is, is removed, and the new run begins."""

    def again(run: Run, _: int) -> None:
        run.require_own()
        with run.lock():
            run.clear()
            assert keys_of(run) == []
            run.begin(B, b"weights of B")
        require_only(run, B)

    each_kill(fresh, monkeypatch, again)


def test_what_begins_there_finds_all_of_a_run_or_nothing(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `capture` without --overwrite does."""

    def begin(run: Run, survive: int) -> None:
        run.require_own()
        whole = run.exists
        assert whole == (survive == 0)
        with run.lock():
            run.begin(B, b"weights of B")
        if whole:
            assert run.manifest()["note"] == "A"
            assert read_solution(run) == solution(3)
            assert not run.documents.exists(layout.CLEARING)
        else:
            require_only(run, B)

    each_kill(fresh, monkeypatch, begin)


def test_a_half_cleared_run_is_none(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fresh()
    kill_clearing(run, monkeypatch, 3)
    with pytest.raises(RunNotFoundError):
        run.manifest()


def test_who_finishes_may_be_killed_too(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    for survive in range(1, len(layout.CONTENTS) + 2):
        run = fresh()
        assert kill_clearing(run, monkeypatch, survive)
        for more in (1, survive, len(layout.CONTENTS) + 1):
            with killed(monkeypatch, more), pytest.raises(KilledError), run.lock():
                run.begin(B, b"weights of B")
            run.require_own()
        run.begin(B, b"weights of B")
        require_only(run, B)


def test_a_run_that_was_cleared_whole_leaves_nothing(fresh: Fresh) -> None:
    run = fresh()
    fill(run)
    run.clear()
    assert keys_of(run) == []
    run.require_own()


def test_a_foreign_document_of_this_name_is_left_alone(fresh: Fresh) -> None:
    run = fresh()
    run.documents.write(layout.CLEARING, b'{"sale": "everything must go"}')
    with pytest.raises(RunError, match="not a run"):
        run.require_own()
    with run.lock("begin"):
        run.finish_clearing()
    assert keys_of(run) == [layout.CLEARING]


def test_a_killed_clearing_in_a_bucket(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()

    def begin(run: Run, survive: int) -> None:
        again = Run.at(run.url)
        again.require_own()
        if survive:
            again.begin(B, b"weights of B")
            require_only(again, B)
        else:
            assert read_solution(again) == solution(3)

    each_kill(lambda: Run.at(f"{place.url}/{next(numbers)}"), monkeypatch, begin, step=4)
