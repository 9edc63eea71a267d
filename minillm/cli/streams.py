"""stdin, stdout and stderr as a program may find them.

A service or `2>&-` starts a program without some of them: Python then sets sys.stdout to None. A terminal may
have an encoding that lacks a character of the answer. A disk may be full. None of these may end a command
with a traceback, and none may lose text that could be shown.

    closed stdin      reads as empty                     closed stderr     messages are dropped
    closed stdout     `StdoutFailed` at the first text   missing letter    printed as an escape: \\u2019
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from typing import Any, TextIO

from minillm.cli.signals import Terminated
from minillm.errors import MinillmError


class StdoutFailed(MinillmError, OSError):
    """Text cannot be written to stdout: it is closed, or the disk is full."""


class _NoOutput(io.TextIOBase):
    """A closed stdout: any text written to it is an error of the command."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise StdoutFailed("cannot write to stdout: it is closed", "redirect it to a file, or to /dev/null")


class _NamedOutput(io.FileIO):
    """The file behind stdout. Its errors say that they are of stdout: an OSError of a write names no file."""

    def write(self, data: Any, /) -> int:
        # One call in C writes and keeps the count. An interrupt between the two would lose the count, and the
        # buffer above would write the same text again.
        written: list[int] = []
        try:
            written.extend(map(super().write, (data,)))
        except KeyboardInterrupt as interrupt:
            if not written or isinstance(interrupt, Terminated):  # a second SIGTERM would be ignored
                raise
            _interrupt_soon()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StdoutFailed(
                f"cannot write to stdout: {error.strerror}", "redirect it to another place"
            ) from None
        return written[0]


def _interrupt_soon() -> None:
    """Interrupt the main thread again, when the write that was interrupted has returned."""
    main = threading.main_thread().ident
    threading.Timer(0.001, signal.pthread_kill, (main, signal.SIGINT)).start()


def prepare() -> None:
    """Make the three streams usable; a stream that works already is only told to escape missing letters."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open as long as the process
    sys.stdout = _NoOutput() if sys.stdout is None else _named(sys.stdout)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _named(stream: TextIO) -> TextIO:
    """The same stream above a `_NamedOutput`, if it writes to a file of the system."""
    buffer: Any = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # the same with PYTHONUNBUFFERED
    if not isinstance(stream, io.TextIOWrapper) or type(raw) is not io.FileIO:
        return stream
    stream.flush()
    file: Any = _NamedOutput(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        file if buffer is raw else io.BufferedWriter(file),
        stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def abandon(stream: TextIO | Any) -> None:
    """Let the interpreter's last flush of `stream` go nowhere, after a write to it has failed."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def say(text: str, end: str = "\n") -> None:
    """Print a message to stderr. If that fails, this and all later ones are dropped."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        abandon(sys.stderr)


class StatusHandler(logging.StreamHandler[TextIO]):
    """Log records on stderr. A stderr that fails is no reason to print a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("minillm: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""
