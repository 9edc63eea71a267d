"""A student's CUDA file section by section.

To check one task, its section of the student's file is put into the finished file. So a mistake in another
section does not affect this task. `#line` keeps the student's line numbers in every message.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.cuda_text import STUB, check_kernels, replaced, sections
from minillm.labs.grader.lab import Task
from minillm.labs.grader.result import Status

# What reads other files: the finished kernel is one of them.
_READS = re.compile(r"(?:#|%:|\?\?=)\s*(?:include\w*|import|embed)\b[^\n]*|\b_Pragma\b|\b(?:__)?asm(?:__)?\b")


class NotJudged(Exception):
    """The part is not run: it is missing, not written, or not the file's own."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status: Status = status


def section_kernels(lab: CudaLab, task: Task, text: str, file: Path) -> Kernels:
    """The finished file with the student's section of `task`, or for a task without part the student's file.

    Raises:
        NotJudged: a section is missing or not written, or the file includes other files.
    """
    mine, check = sections(text), check_kernels(lab.package / lab.file)
    for number in [task.number] if task.part else sections(lab.solution()):
        if number not in mine:
            lost = f"// begin {number} ... // end {number}"
            raise NotJudged("missing", f"{file.name} has no {lost}: start from the skeleton")
        if STUB in mine[number][1]:
            name = task.part.label if task.part else "the whole kernel"
            raise NotJudged("todo", f"Lab {task.number} {name}; hint: minillm labs hint {task.number}")
    if reads := _other_reads(lab, text):
        raise NotJudged("refused", f"{file.name} reads another file: {reads}")
    if task.part is None:
        return Kernels(lab.file, f'#line 1 "{file.name}"\n{text}\n{check}')
    line, body = mine[task.number]
    theirs = f"the lab's own part of {file.name}"
    end = _line_of_end(lab, task)
    body = f'#line {line} "{file.name}"\n{body}#line {end} "{theirs}"\n'
    return Kernels(lab.file, f'#line 1 "{theirs}"\n' + replaced(lab.solution(), task.number, body) + check)


def _line_of_end(lab: CudaLab, task: Task) -> int:
    """The number of the line `// end` of the task in the finished file."""
    line, body = sections(lab.solution())[task.number]
    return line + body.count("\n")


def _other_reads(lab: CudaLab, text: str) -> str:
    """The first line that reads a file which the finished file does not read; "" if there is none."""
    own = {match[0].strip() for match in _READS.finditer(lab.solution())}
    joined = text.replace("\\\n", "")
    return next((m[0].strip() for m in _READS.finditer(joined) if m[0].strip() not in own), "")


def load_source(file: Path) -> ModuleType:
    """A student's .cu file as a module that contains only its text."""
    module = ModuleType("student_lab")
    module.source = file.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    return module
