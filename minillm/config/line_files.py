"""Reads files that hold one JSON object a line, and believes nothing about them.

A file may be a folder, a pipe, or a gigabyte without a line break. So a line is read up to a limit, and each
caller gives the error that it raises for its own kind of file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minillm.config.files import open_file, unreadable
from minillm.errors import MinillmError

TooLong = Callable[[int], MinillmError]


def numbered_lines(path: Path, limit: int, too_long: TooLong) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, from 1, and with their line breaks; the last one may have none.

    Args:
        limit: bytes of a line.
        too_long: makes the error of a longer one, from its number.

    Raises:
        UnreadableFile: there is no such file, or it cannot be read.
    """
    with open_file(path) as file:
        number = 0
        while True:
            try:
                line = file.readline(limit + 1)
            except OSError as error:
                raise unreadable(path, error) from None
            if not line:
                return
            number += 1
            if len(line) > limit:
                raise too_long(number)
            yield number, line


def json_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # also no UTF-8, and numbers of thousands of digits
        return None
    return found if isinstance(found, dict) else None
