"""Count the work of plain Python, which calls no tensor operation: lines that run, entries that are read.

    for block in table:        runs once for each block, and once more to end
        count += 1             runs once for each block
    [f(x) for x in row]        runs once for each x, and each line of f too

    table[3]                   reads one entry of a `ReadList`
    sorted(table), table[:]    reads all of them

The numbers are not measurements of time: a slow or busy computer counts the same. They differ a little
between versions of Python, so a limit is a multiple of what is needed. A loop inside a C function
(`sum(range(n))`, `x in a_list`) is not counted. Where such a loop could replace the counted one, a case also
calls the part with a number so large that the loop never ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from minillm.labs.grader.lab import Counted


def counted_lines(action: Callable[[], Any]) -> int:
    """Run `action`; return how many lines of Python ran in it, and in all that it called."""
    count = 0

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def lines_run(limit: int, count: int) -> Counted:
    """Whether `count` lines are within `limit`, in words."""
    if count <= limit:
        return Counted(f"at most {limit:,} lines of Python run")
    return Counted(f"more than {limit:,} lines of Python run", f"{count:,}")


def lines_at_most(
    limit: int, part: Callable[..., Any], first: tuple[Any, ...], much: tuple[Any, ...], endless: Any = None
) -> Counted:
    """Call `part` with the arguments `first`, then count the lines that it needs for `much`.

    The first call also imports what it needs. With the arguments `endless` a loop of C code that is too long
    never ends, or fills the memory.
    """
    part(*first)
    words = lines_run(limit, counted_lines(partial(part, *much)))
    if endless and not words.count:
        part(*endless)
    return words


class ReadList(list[Any]):
    """A list that counts how many of its entries are read. `in`, `index` and `remove` are not counted."""

    def __init__(self, items: Iterable[Any]) -> None:
        super().__init__(items)
        self.num_reads = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.num_reads += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Iterator[Any]:
        self.num_reads += len(self)
        return super().__iter__()

    def __reversed__(self) -> Iterator[Any]:
        self.num_reads += len(self)
        return super().__reversed__()

    def __add__(self, other: Any) -> Any:
        self.num_reads += len(self)
        return super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        return [*other, *self]

    def copy(self) -> list[Any]:
        """All entries, in a plain list."""
        return list(self)

    def sort(self, **options: Any) -> None:
        """Reads every entry."""
        self.num_reads += len(self)
        super().sort(**options)


def lists_read(limit: int, lists: Iterable[tuple[str, ReadList, int]]) -> Counted:
    """Whether each list (its name, itself, its first length) is read at most `limit` times over, in words."""
    for name, items, size in lists:
        if items.num_reads > limit * size:
            times = f"{items.num_reads // size:,} times"
            return Counted(f"all of {name} is read more than {limit} times", times)
    return Counted(f"no list is read more than {limit} times")
