"""Files that came with a model: read whole, within limits, and refused with one typed error each.

Nothing about such a file is certain. It may be a folder, a pipe that never ends, a terabyte long, a link to
nowhere, or gone between two reads. The rules:

    absent        the name does not exist; the caller decides whether the file was needed
    unreadable    it exists, and the system refuses it: `UnreadableFile`, which does not call it damaged
    damaged       it can be read, and its content makes no sense: the caller's own error

Links are followed wherever they lead: a snapshot in the Hugging Face cache consists of links to files outside
its folder. Names that come out of a file (the shards of an index) must be names in the same folder.
"""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from minillm.config.checks import shown
from minillm.config.sizes import format_bytes
from minillm.errors import MinillmError, UnreadableFile

SETTINGS_LIMIT = 32 << 20  # bytes of a JSON file, a header or a template; parsed, up to 30 times as many
TOKENIZER_LIMIT = 512 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
AGAIN = "download the model again"


def exists(path: Path) -> bool:
    """Whether the name is there, even as a link to nowhere.

    Raises:
        UnreadableFile: the system does not say.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return True


def open_file(path: Path) -> BufferedReader:
    """Open an ordinary file for reading. Never waits, as opening a pipe would.

    Raises:
        UnreadableFile: it is something else, the system refuses it, or git-LFS has not fetched it.
    """
    try:
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnreadableFile(f"{path} is not an ordinary file", "remove it, or put the model's file there")
    _refuse_pointer(file, path)
    return file


def _refuse_pointer(file: BufferedReader, path: Path) -> None:
    """Refuse the few lines that git leaves in the place of a large file when it has no git-LFS."""
    try:
        is_pointer = file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER)
    except OSError as error:
        file.close()
        raise unreadable(path, error) from None
    if is_pointer:
        file.close()
        raise UnreadableFile(
            f"{shown_path(path)} is a git-LFS pointer, and not the file itself",
            "run `git lfs pull` in its folder, or download the file",
        )


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe without O_NONBLOCK is opened only when another process writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path, limit: int = SETTINGS_LIMIT) -> bytes:
    """The content of an ordinary file of at most `limit` bytes.

    Raises:
        UnreadableFile: it cannot be read, or is longer.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UnreadableFile(
                f"{path} is longer than {format_bytes(limit)}", "no model needs a file of this size"
            )
        try:
            return file.read(size)  # a buffer of this size is allocated first
        except OSError as error:
            raise unreadable(path, error) from None


def read_text(path: Path, damaged: type[MinillmError]) -> str:
    """The content of a UTF-8 file.

    Raises:
        UnreadableFile: it cannot be read.
        MinillmError: `damaged`, where it is not UTF-8.
    """
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise damaged(f"{path} is not UTF-8: {error}", AGAIN) from None


def read_object(path: Path, damaged: type[MinillmError]) -> dict[str, Any]:
    """The object in a JSON file. Two different values under one key are refused.

    Raises:
        UnreadableFile: it cannot be read.
        MinillmError: `damaged`, where it is no JSON object.
    """
    return parse_object(read_text(path, damaged), str(path), damaged)


def parse_object(text: str, name: str, damaged: type[MinillmError]) -> dict[str, Any]:
    """As `read_object`, of text that came from the file `name`."""

    def no_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            for key, value in pairs:
                if made[key] != value:
                    raise damaged(f"{name} has two values for {shown(key)}", "remove one of them")
        return made

    try:
        content = json.loads(text, object_pairs_hook=no_contradiction)
    except (ValueError, RecursionError) as error:
        if isinstance(error, MinillmError):
            raise
        raise damaged(f"{name} is not JSON: {error}", AGAIN) from None
    except MemoryError:
        raise UnreadableFile(f"{name} does not fit the memory", "free some memory") from None
    if not isinstance(content, dict):
        raise damaged(f"{name} is not a JSON object", AGAIN)
    return content


def unreadable(path: Path, error: OSError | ValueError) -> UnreadableFile:
    """The error of a file that the system refuses, with the system's reason."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return UnreadableFile(
        f"{shown_path(path)} cannot be read: {reason}", "check the file and its permissions"
    )


def shown_path(path: Path) -> str:
    """A path for an error message; the middle of a very long one is left out."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-150:]}"
