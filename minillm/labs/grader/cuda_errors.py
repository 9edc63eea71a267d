"""The simulator's errors in a lab's words: both lines of a race, in the numbers of the student's file.

    lab7.cu:139   score_keys(scores, q_tile, kv_tile, ..)     the student's section; it calls
    line 75       sum += q[row][d] * keys[key][d];            the lab's own part, which reads

The message names the function that made the access and the student's line that called it. An access that no
line of the student leads to is in the lab's own part; a race there is still caused by the student's section
(by a missing barrier, for example).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from minillm.ops.simt import SimtError
from minillm.ops.simt.machine import Frame

OWN = "the lab's own part of "


def in_words(error: SimtError, file: str) -> SimtError:
    """`error` with its lines in the message, and with a short account without lines as its class's name."""
    first, second = error.detail
    array = re.search(r"`(\w+)`", first)
    account = error.kind + (f" of {array[1]}" if array else "")
    if error.frames and error.other_frames:
        account += f": {_deed(first, error.frames)}, {_deed(second, error.other_frames)}"
    elif error.frames and error.frames[0].function:
        account += f" in {error.frames[0].function}"
    account += " after threads have returned" if "have returned" in first else ""
    told = SimtError(
        error.kind,
        error.kernel,
        error.block,
        error.thread,
        *_line(error.frames, file),
        _sentence(first, error.frames, file)
        + (f"; {_sentence(second, error.other_frames, file)}" if second else ""),
        error.detail,
        error.frames,
        error.other_frames,
    )
    told.__class__ = type(account, (SimtError,), {})
    return told


def _deed(what: str, frames: Sequence[Frame]) -> str:
    """ "load_tile writes"."""
    verb = re.search(r" (reads|writes|read|wrote|issued)\b", what)
    return f"{frames[0].function} {verb[1] if verb else ''}".strip()


def _line(frames: Sequence[Frame], file: str) -> tuple[str | None, int | None]:
    """The innermost place in the student's file; without one, the place in the lab's own part."""
    mine = [frame for frame in frames if frame.file == file]
    found = (mine or list(frames))[:1]
    return (found[0].file, found[0].line) if found else (None, None)


def _sentence(what: str, frames: Sequence[Frame], file: str) -> str:
    """What happened, and the function and line where."""
    place, line = _line(frames, file)
    if place is None:
        return what
    inner = frames[0]
    if place == file and (inner.file, inner.line) != (place, line):
        return f"{what} (in {inner.function}, called at {place}:{line})"
    at = f"{place}:{line}" if place == file else f"{inner.function}, {OWN}{file}"
    return f"{what} (at {at})"
