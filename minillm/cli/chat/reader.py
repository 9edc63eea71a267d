"""Reads messages: with line editing and history on a terminal, plainly from a pipe.

A line that begins with three quotes begins a message of several lines; it ends at the next three quotes.
The `readline` module of Python edits lines. The history is a file that only its owner can read.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from minillm.cli.options import dim
from minillm.cli.streams import say
from minillm.errors import UnreadableFile, UsageError
from minillm.toolchain.cache import cache_folder

try:
    import readline
except ImportError:  # Windows, and Pythons built without it
    readline = None  # type: ignore[assignment]

QUOTES = '"""'
HISTORY_LINES = 1000


class Reader:
    """The messages of one chat. On a terminal Ctrl-C drops the line being typed; Ctrl-D ends the chat."""

    def __init__(self, quiet: bool = False) -> None:
        self.is_terminal = sys.stdin.isatty()
        self._quiet = quiet
        edits = self.is_terminal and sys.stdout.isatty() and not quiet
        self._readline = readline if edits else None
        self._history = cache_folder() / "chat_history"

    def __enter__(self) -> Reader:
        if self._readline is not None:
            with suppress(OSError):
                self._readline.read_history_file(self._history)
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is not None:
            self._readline.set_history_length(HISTORY_LINES)
            with suppress(OSError):  # a read-only home: the next chat has no history
                _touch_private(self._history)
                self._readline.write_history_file(self._history)

    def message(self) -> str | None:
        """The next message that is not empty; None at the end of the input."""
        while True:
            try:
                text = self._message()
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                say(dim("\n[Ctrl-D or /bye ends the chat]"))
                continue
            if text is None or text:
                return text

    def _message(self) -> str | None:
        first = self._line("> ")
        if first is None or not first.lstrip().startswith(QUOTES):
            return None if first is None else first.strip()
        lines = [first.lstrip().removeprefix(QUOTES)]
        while QUOTES not in lines[-1]:
            following = self._line(". ")
            if following is None:
                break  # the end of the input ends the message too
            lines.append(following)
        lines[-1] = lines[-1].partition(QUOTES)[0]
        return "\n".join(lines).strip()

    def _line(self, sign: str) -> str | None:
        """One line without its line break; None at the end of the input."""
        try:
            if self._readline is not None:
                return input(sign)
            if self.is_terminal and not self._quiet:
                say(dim(sign), end="")
            line = sys.stdin.readline()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin is not UTF-8: {error.reason} at offset {error.start}") from None
        except OSError as error:  # a folder, or a terminal that is gone
            reason = f"stdin cannot be read: {error.strerror}"
            raise UnreadableFile(reason, "give it a file or a pipe") from None
        return line.removesuffix("\n") if line else None


def _touch_private(path: Path) -> None:
    """Make the file if it does not exist, readable for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
