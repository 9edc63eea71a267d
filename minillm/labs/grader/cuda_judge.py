"""Judge a CUDA lab's file section by section.

To check one task, its section of the student's file is put into the finished file. So a mistake in another
section does not affect this task. The last task puts all sections into it. Text outside of the sections and
the helpers has no effect: a launcher that computes on the host, for example, is not run.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from minillm.labs.grader.cuda_kernels import Build, Kernels, finished
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.cuda_text import STUB, filled, for_task, sections
from minillm.labs.grader.judge import judge
from minillm.labs.grader.lab import Task
from minillm.labs.grader.result import TaskResult, failed


def judge_section(lab: CudaLab, task: Task, text: str, file: Path) -> TaskResult:
    """Judge one task of the student's text."""
    return lacking(lab, task, text, file) or judge(
        task, student_kernels(lab, task, text), own_kernels(lab, task), file
    )


def lacking(lab: CudaLab, task: Task, text: str, file: Path) -> TaskResult | None:
    """The result if the text lacks a section of the task; None if all are written."""
    mine = sections(text)
    for number in _needed(lab, task):
        if number not in mine:
            lost = f"// begin {number} ... // end {number}"
            return failed(task, "missing", f"{file.name} has no {lost}: start from the skeleton")
        if STUB in mine[number][1]:
            name = task.part.label if task.part else "the whole kernel"
            hint = f"minillm labs hint {task.number}"
            return failed(task, "todo", f"Lab {task.number} {name}; hint: {hint}")
    return None


def student_kernels(lab: CudaLab, task: Task, text: str) -> Kernels:
    """The finished file with the student's sections of this task, ready to run."""
    assembled = filled(lab.solution(), text, _needed(lab, task), lab.file)
    return Build(lab.file).add(for_task(lab.package / lab.file, task.number, assembled))


def own_kernels(lab: CudaLab, task: Task) -> Kernels:
    """The finished file, ready to run."""
    return finished(lab.package / lab.file, task.number)


def _needed(lab: CudaLab, task: Task) -> list[str]:
    return [task.number] if task.part else list(sections(lab.solution()))


def load_source(file: Path) -> ModuleType:
    """A student's .cu file as a module that contains only its text."""
    module = ModuleType("student_lab")
    module.source = file.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    return module
