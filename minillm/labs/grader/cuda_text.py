"""The text of a CUDA lab's file: sections to fill in, marked by comments.

lab7.cu                  // begin 7.2          the finished file; the skeleton is the same without the
                         ...                   lines between these two
                         // end 7.2
                         // begin helpers      a student's own functions; empty in the finished file
                         // end helpers
lab7_check.cu            // check 7.2          a kernel around the function of one section, for its checks
                         ...
                         // check 7.3
"""

from __future__ import annotations

import re
from pathlib import Path

STUB = "NOT_WRITTEN();"
HELPERS = "helpers"


def sections(text: str) -> dict[str, tuple[int, str]]:
    """{task number: (number of the line after `// begin`, the lines up to `// end`)}, without the helpers."""
    return {number: found for number, found in _marked(text).items() if number != HELPERS}


def helpers(text: str) -> tuple[int, str]:
    """The student's own functions, as in `sections`; (0, "") if the file has no place for them."""
    return _marked(text).get(HELPERS, (0, ""))


def _marked(text: str) -> dict[str, tuple[int, str]]:
    found = re.finditer(r"^ *// begin (\S+)[^\n]*\n(.*?)^ *// end \1 *$", text, re.MULTILINE | re.DOTALL)
    return {m[1]: (text.count("\n", 0, m.start(2)) + 1, m[2]) for m in found}


def replaced(text: str, number: str, body: str) -> str:
    """`text` with `body` as section `number`."""
    pattern = rf"(^ *// begin {re.escape(number)}(?: [^\n]*)?\n).*?(^ *// end {re.escape(number)} *$)"
    return re.sub(pattern, lambda m: m[1] + body + m[2], text, count=1, flags=re.MULTILINE | re.DOTALL)


def emptied(text: str) -> str:
    """`text` with a stub in every section."""
    for number in sections(text):
        text = replaced(text, number, f"  {STUB}  // stuck? minillm labs hint {number}\n")
    return text


def filled(own: str, mine: str, numbers: list[str], file: str) -> str:
    """The finished file `own` with sections of the student's file `mine`, and with its helpers.

    `#line` gives every line its number in the student's file, and the others a name of their own.
    """
    theirs, given = f'#line 1 "the lab\'s own part of {file}"\n', sections(mine)
    line, body = helpers(mine)
    places = {number: given[number] for number in numbers} | ({HELPERS: (line, body)} if line else {})
    for number, (line, body) in places.items():
        if not body.endswith("\n"):
            body += "\n"
        own = replaced(own, number, f'#line {line} "{file}"\n{body}{theirs}')
    return theirs + own


def for_task(file: Path, number: str, text: str | None = None) -> str:
    """The finished `file` (or `text`) with the check kernels of task `number`.

    A task with check kernels needs no main kernel, so the last section's function is left out.
    """
    text = file.read_text(encoding="utf-8") if text is None else text
    check = check_kernels(file).get(number)
    if check is None:
        return text
    last = list(sections(file.read_text(encoding="utf-8")))[-1]
    return text[: text.index(f"// ---- {last} ---")] + f'#line 1 "{file.stem}_check.cu"\n' + check


def check_kernels(file: Path) -> dict[str, str]:
    """{task number: its kernels} of the file beside the finished `file`."""
    parts = re.split(r"^// check (\S+)$", _check_file(file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {number: parts[0] + body for number, body in zip(parts[1::2], parts[2::2], strict=True)}


def _check_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}_check.cu")
