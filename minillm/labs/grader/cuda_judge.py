"""A student's CUDA file section by section.

To check one task, its section of the student's file is put into the finished file. So a mistake in another
section does not affect this task. The last task puts all sections into it. Text outside of the sections and
the helpers has no effect: a launcher that computes on the host, for example, is not run.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from minillm.labs.grader.cuda_kernels import Build, Kernels
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.cuda_text import STUB, filled, for_task, helpers, sections
from minillm.labs.grader.lab import Task
from minillm.labs.grader.result import Status

# What reads other files (the finished kernel is one of them), reaches into the simulator that counts, takes
# loads and stores out of its sight (attributes), runs outside of kernels, or makes such a word of two (`##`).
_REACHES = re.compile(
    r"(?:#|%:|\?\?=)\s*(?:(?:include\w*|import|embed|line)\b|pragma\b(?!\s+unroll\b))[^\n]*"
    r"|##|%:%:|\?\?=\s*\?\?="
    r"|\b(?:_Pragma|(?:__)?asm(?:__)?|simt|__tsan\w*|__attribute(?:__)?)\b|\[\[\s*(?:using\s+)?(?:gnu|clang)\w*"
    r"|\bextern\s*\"|\bstd\s*::\s*(?:mem|copy|move|fill|uninitialized)\w*\s*[(<]|#\s*undef\b"
)


class NotJudged(Exception):
    """The section is not run: it is missing, not written, or reaches beyond a kernel."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status: Status = status


def section_kernels(lab: CudaLab, task: Task, text: str, file: Path) -> Kernels:
    """The finished file with the student's section of `task`; with all sections for a task without part.

    Raises:
        NotJudged: a section is missing or not written, or has what a kernel does not need.
    """
    mine, needed = sections(text), [task.number] if task.part else list(sections(lab.solution()))
    for number in needed:
        if number not in mine:
            lost = f"// begin {number} ... // end {number}"
            raise NotJudged("missing", f"{file.name} has no {lost}: start from the skeleton")
        if STUB in mine[number][1]:
            name = task.part.label if task.part else "the whole kernel"
            raise NotJudged("todo", f"Lab {task.number} {name}; hint: minillm labs hint {task.number}")
    for line, body in (helpers(text), *(mine[number] for number in needed)):
        code = _without_comments(body)
        if found := _REACHES.search(code):
            at = line + code.count("\n", 0, found.start())
            raise NotJudged("refused", f"{file.name}:{at}: {found[0].strip()!r} has no place in a kernel")
    assembled = filled(lab.solution(), text, needed, lab.file)
    return Build(lab.file).add(for_task(lab.package / lab.file, task.number, assembled))


def _without_comments(code: str) -> str:
    """`code` with spaces for comments, on the same lines."""
    joined = code.replace("\\\n", "  ")
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), joined, flags=re.DOTALL)


def load_source(file: Path) -> ModuleType:
    """A student's .cu file as a module that contains only its text."""
    module = ModuleType("student_lab")
    module.source = file.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    return module
