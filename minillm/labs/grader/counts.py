"""Count the work of plain Python, which calls no tensor operation: lines, entries of lists, bytes.

    for block in table:        runs once for each block, and once more to end
        count += 1             runs once for each block
    [f(x) for x in row]        runs once for each x, and each line of f too

    table[3]                   reads one entry of a `ReadList`
    sorted(table), table[:]    reads all of them, and needs the bytes of another list

The numbers are not measurements of time: a slow or busy computer counts the same. They differ a little
between versions of Python, so a limit is a multiple of what is needed. A loop inside a C function
(`sum(range(n))`, `x in a_list`) is not counted. Where such a loop could replace the counted one, a case also
calls the part with a number so large that the loop never ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from sys import gettrace, settrace  # not by way of the modules: a file can replace names there
from tracemalloc import get_traced_memory, is_tracing, reset_peak, start, stop
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

    before = gettrace()
    settrace(step)
    try:
        action()
    finally:
        settrace(before)
    return count


def counted_bytes(action: Callable[[], Any]) -> int:
    """Run `action`; return the most bytes that the objects it made took at once. Tensors are not counted."""
    was_tracing = is_tracing()
    if not was_tracing:
        start()
    try:
        reset_peak()
        before = get_traced_memory()[0]
        action()
        return get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            stop()


def within(limit: int, count: int, what: str) -> Counted:
    """Whether `count` is within `limit`, in words; `what` is "lines of Python run"."""
    if count <= limit:
        return Counted(f"at most {limit:,} {what}")
    return Counted(f"more than {limit:,} {what}", f"{count:,}")


def together(*found: Counted) -> Counted:
    """The first of the counts that is too large; all of them if none is."""
    too_large = [words for words in found if words.count]
    return too_large[0] if too_large else Counted(", and ".join(words.text for words in found))


LINES, BYTES = "lines of Python run", "bytes are needed at once"


def small_work(
    limits: tuple[int, int],
    part: Callable[..., Any],
    first: tuple[Any, ...],
    much: tuple[Any, ...],
    endless: tuple[Any, ...] = (),
) -> Counted:
    """Whether `part` needs at most so many lines and bytes for the arguments `much`.

    It is called with `first` before, so that what it imports is not counted, and with `endless` at the end:
    then a loop of C code that is too long never ends.
    """
    part(*first)
    lines = list[int]()
    size = counted_bytes(lambda: lines.append(counted_lines(partial(part, *much))))
    found = together(within(limits[0], lines[0], LINES), within(limits[1], size, BYTES))
    if endless and not found.count:
        part(*endless)
    return found


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
