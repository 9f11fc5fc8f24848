"""Index maps in short: lists of integers as runs of constant step.

An index map holds the entries of every position, equally many of each. It is written position by position or
entry by entry, whichever has fewer runs: the features of a flattened channel are one run that way, the two halves
of a concatenation two runs this way.
"""

from __future__ import annotations

from streamsparse.errors import CorruptDataError

IndexMap = tuple[tuple[int, ...], ...]
_MOST_ENTRIES = 1 << 26


def index_to_json(index: IndexMap) -> dict[str, object]:
    """`{"each": entries per position, "order": "position" | "entry", "runs": [[first, count, step], ...]}`."""
    by_position = _runs([entry for entries in index for entry in entries])
    by_entry = _runs([entry for entries in zip(*index, strict=True) for entry in entries])
    short = len(by_position) <= len(by_entry)
    return {
        "each": len(index[0]),
        "order": "position" if short else "entry",
        "runs": by_position if short else by_entry,
    }


def index_from_json(value: object, size: int, where: str) -> IndexMap:
    """The index map of `size` positions.

    Raises:
        CorruptDataError: not what `index_to_json` writes, or not of this size.
    """
    if not isinstance(value, dict) or set(value) != {"each", "order", "runs"}:
        raise _corrupt("an object of each, order and runs", value, where)
    each, order, runs = value["each"], value["order"], value["runs"]
    if not _is_count(each) or order not in ("position", "entry") or not isinstance(runs, list):
        raise _corrupt("a number, position or entry, and a list", value, where)
    if not all(isinstance(run, list) and len(run) == 3 and all(map(_is_integer, run)) for run in runs):
        raise _corrupt("runs of [first, count, step]", runs, where)
    total = sum(run[1] for run in runs)
    if any(run[1] < 1 for run in runs) or total != size * each or total > _MOST_ENTRIES:
        raise _corrupt(f"{size} positions of {each} entries", f"{total} entries", where)
    flat = [first + step * i for first, count, step in runs for i in range(count)]
    if min(flat) < 0 or len(set(flat)) != len(flat):
        raise _corrupt("entries from 0 on, each once", "negative or repeated entries", where)
    if order == "position":
        return tuple(tuple(flat[i : i + each]) for i in range(0, total, each))
    return tuple(zip(*(flat[i : i + size] for i in range(0, total, size)), strict=True))


def _runs(flat: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in flat:
        if runs and runs[-1][1] == 1:
            runs[-1][1:] = [2, value - runs[-1][0]]
        elif runs and value == runs[-1][0] + runs[-1][1] * runs[-1][2]:
            runs[-1][1] += 1
        else:
            runs.append([value, 1, 1])
    return runs


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _corrupt(expected: str, got: object, where: str) -> CorruptDataError:
    return CorruptDataError(
        "An index map of a stored channel graph is not valid.",
        expected=expected,
        got=str(got)[:200],
        where=where,
        remedy="Find the groups again from the model.",
    )
