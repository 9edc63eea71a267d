"""A file of lines that a running engine appends to: a divergence record, a trace.

    create    a new file, readable by its owner only; an existing one is never overwritten
    add       a line is kept
    flush     the kept lines are appended with one write; whatever stops the process later, they are there
    close     the last flush

A write that fails (a full disk) or would make the file longer than its limit ends it at its last whole line.
The log says so once. The engine does not notice, because a request must not fail because something else is
written down. If Ctrl-C interrupts a write, the next one takes back what was written and repeats it whole.

A process that was forked has the same file open. It writes nothing.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from pathlib import Path

from minillm.config.files import shown_path
from minillm.config.sizes import format_bytes
from minillm.errors import StorageError, UsageError

_log = logging.getLogger(__name__)


class LineFile:
    """A new file of lines. `what` names it in the log, `option` in errors; `limit`: the most bytes.

    Raises:
        UsageError: there is something of this name, or the name cannot be one.
        StorageError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, option: str, what: str, limit: float = math.inf) -> None:
        self._limit = limit
        self._path, self._what, self._process = Path(path), what, os.getpid()
        self._lines: list[str] = []
        self._size = 0  # bytes of whole lines
        self._file: int | None = create(self._path, option)

    @property
    def is_open(self) -> bool:
        """Whether lines are still taken."""
        return self._file is not None

    @property
    def num_kept(self) -> int:
        """Lines that are not written yet."""
        return len(self._lines)

    def add(self, line: str) -> None:
        """Keep a line (without its line break) until `flush`."""
        if self.is_open:
            self._lines.append(line + "\n")

    def flush(self) -> None:
        """Append the kept lines. If that fails the file ends here."""
        if self._file is None or not self._lines or os.getpid() != self._process:
            return
        data = "".join(self._lines).encode()
        if self._size + len(data) > self._limit:
            self._give_up(self._file, f"it would be longer than {format_bytes(self._limit)}")
            return
        try:
            if os.fstat(self._file).st_size > self._size:  # an interrupted write
                os.ftruncate(self._file, self._size)
            write_all(self._file, data)
        except OSError as error:
            self._give_up(self._file, error.strerror or str(error))
            return
        # Python handles Ctrl-C only at calls and loop ends: never between these two lines.
        self._size += len(data)
        self._lines.clear()

    def _give_up(self, file: int, reason: str) -> None:
        _log.warning(f"{shown_path(self._path)}: {self._what} ends here: {reason}")
        truncate(file, self._size)
        self._end(file)

    def close(self) -> None:
        """Write what is left and close the file; do nothing the second time."""
        self.flush()
        if self._file is not None:
            self._end(self._file)

    def _end(self, file: int) -> None:
        self._file, self._lines = None, []
        os.close(file)


def create(path: Path, option: str) -> int:
    """Make a new file that only its owner can read, and open it for appending.

    Raises:
        UsageError: there is something of this name, or the name cannot be one.
        StorageError: the folder cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR)
    except FileExistsError:
        raise UsageError(
            f"{option}: {shown_path(path)} exists already",
            "name a new file; a record is never overwritten",
        ) from None
    except ValueError as error:  # a NUL, a lone surrogate
        raise UsageError(f"{option} is no path: {error}", "name a new file") from None
    except OSError as error:
        raise StorageError(
            f"{option}: {shown_path(path)} cannot be made: {error.strerror}",
            "name a new file in a folder that can be written",
        ) from None


def write_all(file: int, data: bytes) -> None:
    """Write all of `data`; one call of the system writes less than asked only if it fails next."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def truncate(file: int, size: int) -> None:
    """Cut a line that was written in part, if the system allows it."""
    try:
        os.ftruncate(file, size)
    except OSError:
        _log.debug("the last line of a file is incomplete")
