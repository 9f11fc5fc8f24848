"""Reductions: what every executor runs, and in which order it adds.

A reduction maps every item and merges the results pairwise, neighbours first, in a tree whose shape depends on
the number of items alone; so every executor adds in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reduction(Generic[Item, Result]):
    """Map every item (at least one), then merge.

    Attributes:
        key: names the reduction in the results.
        items, map, merge: picklable; `merge` does not change its arguments.
    """

    key: str
    items: tuple[Item, ...]
    map: Callable[[Item], Result]
    merge: Callable[[Result, Result], Result]


class Executor(Protocol):
    """Runs reductions and yields (key, result) as they finish, in any order."""

    name: str

    def run(
        self, reductions: Sequence[Reduction[Item, Result]], on_item: Callable[[Item], None]
    ) -> Iterator[tuple[str, Result]]:
        """`on_item` is called in the caller's thread for every item that was mapped."""
        ...


def merge_tree(
    items: Sequence[Item], leaf: Callable[[Item], Result], merge: Callable[[Result, Result], Result]
) -> Result:
    """Merge `leaf(item)` over all items: the first half with the second, recursively."""
    if len(items) == 1:
        return leaf(items[0])
    middle = len(items) // 2
    return merge(merge_tree(items[:middle], leaf, merge), merge_tree(items[middle:], leaf, merge))
