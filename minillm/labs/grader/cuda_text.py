"""The text of a CUDA lab's file: sections to fill in, marked by comments.

lab7.cu                  // begin 7.2          the finished file; the skeleton is the same without the
                         ...                   lines between these two
                         // end 7.2
lab7_check.cu                                  kernels around single functions, for the checks only
"""

from __future__ import annotations

import re
from pathlib import Path

STUB = "NOT_WRITTEN();"


def sections(text: str) -> dict[str, tuple[int, str]]:
    """{task number: (number of the line after `// begin`, the lines up to `// end`)}."""
    found = re.finditer(r"^ *// begin (\S+)[^\n]*\n(.*?)^ *// end \1 *$", text, re.MULTILINE | re.DOTALL)
    return {m[1]: (text.count("\n", 0, m.start(2)) + 1, m[2]) for m in found}


def replaced(text: str, number: str, body: str) -> str:
    """`text` with `body` as section `number`."""
    pattern = rf"(^ *// begin {re.escape(number)}\b[^\n]*\n).*?(^ *// end {re.escape(number)} *$)"
    return re.sub(pattern, lambda m: m[1] + body + m[2], text, count=1, flags=re.MULTILINE | re.DOTALL)


def emptied(text: str) -> str:
    """`text` with a stub in every section."""
    for number in sections(text):
        text = replaced(text, number, f"  {STUB}  // stuck? minillm labs hint {number}\n")
    return text


def check_kernels(file: Path) -> str:
    """The text of the kernels that the checks append to the finished `file`."""
    return file.with_name(f"{file.stem}_check.cu").read_text(encoding="utf-8")


def sections_by_line(text: str, name: str) -> dict[tuple[str, int], str]:
    """{(file, line): task number} of the lines in sections. `#line` gives the lines after it a new number."""
    found: dict[tuple[str, int], str] = {}
    number, line = "", 0
    for row in text.splitlines():
        line += 1
        if moved := re.match(r'#line (\d+) "(.*)"', row):
            line, name = int(moved[1]) - 1, moved[2]
        elif begins := re.match(r" *// begin (\S+)", row):
            number = begins[1]
        elif re.match(r" *// end ", row):
            number = ""
        elif number:
            found[name, line] = number
    return found
