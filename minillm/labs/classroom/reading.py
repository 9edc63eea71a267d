"""Whether a submitted file can be checked at all, and its bytes.

A link may lead to another student's file or to a secret of the machine; a pipe would block for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from minillm.labs.classroom.unpack import MAX_FILE_BYTES


class BadFile(Exception):
    """The file cannot be checked; the text says why."""


def read_file(file: Path) -> bytes:
    """The bytes of a submitted file.

    Raises:
        BadFile: a link, a folder, a device, unreadable, empty, too large, or not a text.
    """
    try:
        kind = file.lstat().st_mode
        if stat.S_ISLNK(kind):
            raise BadFile(f"{file.name} is a link, not a file")
        if not stat.S_ISREG(kind):
            raise BadFile(
                f"{file.name} is a {'folder' if stat.S_ISDIR(kind) else 'device or pipe'}, not a file"
            )
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadFile(f"{file.name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise BadFile(f"{file.name} is larger than {MAX_FILE_BYTES >> 20} MiB")
    if not data.strip():
        raise BadFile(f"{file.name} is empty")
    if b"\0" in data:
        raise BadFile(f"{file.name} is not a text in UTF-8: it has zero bytes")
    return data
