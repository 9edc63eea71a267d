"""The simulator's errors in a lab's words: both lines of a race, in the numbers of the student's file.

    lab7.cu:139   score_keys(scores, q_tile, kv_tile, ..)     the student's section; it calls
    line 75       ... q[row][d] ...                           the lab's own part, which reads

The message names the function that made the access and the student's line that called it. An access that no
line of the student leads to is in the lab's own part; a race there is still caused by the student's section
(by a missing barrier, for example).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from minillm.ops.simt import SimtError
from minillm.ops.simt.machine import Frame

_UNORDERED = ", nothing orders it after the other access"


def in_words(error: SimtError, file: str) -> SimtError:
    """`error` with its lines in the message, and with a short account without lines as its class's name.

    So two errors are equal answers if the same happened to the same array in the same functions.
    """
    first, second = error.detail
    message = f"{first.replace(_UNORDERED, '')}{_at(error.frames, file)}"
    if second:
        message += f"; {second}{_at(error.other_frames, file)}"
    if _UNORDERED in first:
        message += "; no barrier is between them"
    where = f"block {error.block[0]}, thread {error.thread[0]}"
    has_no_thread = error.kind == "launch" or "thread" in message
    error.args = (message if has_no_thread else f"{where}: {message}",)
    account = _account(error)
    error.__class__ = type(account, (SimtError,), {"place": account})
    return error


def _account(error: SimtError) -> str:
    """ "race of kv_tile: load_tile writes, add_values read"."""
    first, second = error.detail
    array = re.search(r"`(\w+)`", first)
    account = error.kind + (f" of {array[1]}" if array else "")
    if error.frames and error.other_frames:
        return f"{account}: {_deed(first, error.frames)}, {_deed(second, error.other_frames)}"
    if error.frames and error.frames[0].function:
        return f"{account} in {error.frames[0].function}"
    return account + (" after threads have returned" if "have returned" in first else "")


def _deed(what: str, frames: Sequence[Frame]) -> str:
    """ "load_tile writes"."""
    verb = re.search(r" (reads|writes|read|wrote)\b", f" {what}")
    return f"{frames[0].function} {verb[1] if verb else ''}".strip()


def _at(frames: Sequence[Frame], file: str) -> str:
    """ " at lab7.cu:139 (in score_keys)": the student's line, and the lab's function that it called."""
    mine = [frame for frame in frames if frame.file == file]
    if not frames:
        return ""
    if not mine:
        return f" in {frames[0].function}, the lab's own part" if frames[0].function else ""
    inside = "" if mine[0] == frames[0] else f" (in {frames[0].function})"
    return f" at {mine[0].file}:{mine[0].line}{inside}"
