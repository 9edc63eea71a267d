"""The lines of the student's file that a message names: `lab7.cu:88` becomes the number and the line's text."""

from __future__ import annotations

import re
from dataclasses import replace

from minillm.labs.grader.result import TaskResult

_MAX_LINES = 6


def with_source(result: TaskResult, name: str, text: str) -> TaskResult:
    """`result` with the lines of the file `name` (its whole `text`) that its message names, in that order."""
    lines = text.splitlines()
    found = re.findall(rf"(?<![\w']){re.escape(name)}:(\d+)|\(line (\d+)\)", result.message)
    numbers = dict.fromkeys(int(a or b) for a, b in found)
    shown = [(n, lines[n - 1].rstrip()) for n in numbers if 0 < n <= len(lines)][:_MAX_LINES]
    return replace(result, source="\n".join(f"{n:>5}  {line[:110]}" for n, line in shown))
