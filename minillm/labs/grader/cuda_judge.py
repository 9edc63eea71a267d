"""Judge a CUDA lab's file section by section.

To check one task, its section of the student's file is put into the finished file. So a mistake in another
section does not affect this task. `#line` keeps the student's line numbers in every message.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from minillm.labs.grader.cuda_kernels import Kernels, finished
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.cuda_text import STUB, check_kernels, replaced, sections
from minillm.labs.grader.judge import judge
from minillm.labs.grader.lab import Task
from minillm.labs.grader.result import TaskResult, failed


def judge_section(lab: CudaLab, task: Task, text: str, file: Path) -> TaskResult:
    """Judge one task of the student's text."""
    mine, check = sections(text), check_kernels(lab.package / lab.file)
    numbers = sections(lab.solution())
    own = finished(lab.package / lab.file)
    for number in [task.number] if task.part else numbers:
        if number not in mine:
            lost = f"// begin {number} ... // end {number}"
            return failed(task, "missing", f"{file.name} has no {lost}: start from the skeleton")
        if STUB in mine[number][1]:
            name = task.part.label if task.part else "the whole kernel"
            hint = f"minillm labs hint {task.number}"
            return failed(task, "todo", f"Lab {task.number} {name}; hint: {hint}")
    if task.part is None:
        whole = f'#line 1 "{file.name}"\n{text}\n{check}'
        return judge(task, Kernels(lab.file, whole), own, file)
    line, body = mine[task.number]
    theirs = f'#line 1 "the lab\'s own part of {file.name}"\n'
    body = f'#line {line} "{file.name}"\n{body}{theirs}'
    assembled = theirs + replaced(lab.solution(), task.number, body) + check
    return judge(task, Kernels(lab.file, assembled), own, file)


def load_source(file: Path) -> ModuleType:
    """A student's .cu file as a module that contains only its text."""
    module = ModuleType("student_lab")
    module.source = file.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    return module
