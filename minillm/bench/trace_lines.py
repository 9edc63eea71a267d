"""The lines of a trace file, which may be anything: a folder, a pipe, a gigabyte without a line break.

Each error is one line, names the line of the file, and says what a trace looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minillm.config.files import shown_path
from minillm.config.line_files import numbered_lines
from minillm.errors import MinillmError, NotATrace, UnreadableFile

LINE_LIMIT = 1 << 20  # bytes; a prompt of a million tokens takes 20 KB


def trace_lines(path: Path, hint: str) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, from 1; blank ones are left out. `hint`: what a trace looks like.

    Raises:
        UnreadableFile: there is no such file, or it cannot be read.
        NotATrace: a line is too long, or there is none.
    """
    name, is_empty = shown_path(path), True

    def too_long(number: int) -> NotATrace:
        return NotATrace(f"{name}, line {number}: longer than {LINE_LIMIT:,} bytes", hint)

    try:
        for number, line in numbered_lines(path, LINE_LIMIT, too_long):
            if line.strip():
                is_empty = False
                yield number, line
    except UnreadableFile as error:
        raise UnreadableFile(error.message, hint) from None
    if is_empty:
        raise NotATrace(f"{name} is empty", hint)


class TraceLine:
    """In a `with` block, makes every error about a line a `NotATrace` that names it."""

    def __init__(self, path: Path, number: int, hint: str) -> None:
        self._name, self._hint = f"{shown_path(path)}, line {number}", hint

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MinillmError):
            raise NotATrace(f"{self._name}: {error.message}", self._hint) from None
        if isinstance(error, ValueError | RecursionError):  # also no UTF-8, numbers of thousands of digits
            raise NotATrace(f"{self._name}: it cannot be read", self._hint) from None
