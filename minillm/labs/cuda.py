"""A CUDA lab's file, run in the simulator and judged section by section.

To check one task, its section of the student's file is put into the finished file, so a mistake in
another section blames nobody else. `#line` keeps the student's own line numbers in every message.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from minillm.errors import UsageError
from minillm.labs.judge import judge
from minillm.labs.lab import Task
from minillm.labs.row import Row, failed
from minillm.labs.sections import STUB, CudaLab, handout, replaced, sections
from minillm.ops.simt import KernelLibrary, Profile, SimtError, compile_kernels, flavour, profile


class Kernels:
    """A .cu text, compiled when it is first run. Runs are checked for races and counted."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.counted = Profile()

    @cached_property
    def _library(self) -> KernelLibrary:
        # Kept as long as these kernels: an error's line is read from the library's debug information.
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / self.name
        path.write_text(self.text, encoding="utf-8")
        try:
            return compile_kernels(path, folder=path.parent)
        except UsageError as error:
            raise UsageError(error.message.replace(f"{path.parent}/", "")) from None

    def run(self, launcher: str, **arguments: Any) -> None:
        """Call a launcher under `check`; `counted` is what its kernels moved.

        Raises:
            SimtError: of a class named after its kind, so that two kinds are two answers.
            UsageError: the text does not compile.
        """
        library = self._library  # compiled outside of the profile
        try:
            with flavour("check"), profile() as self.counted:
                library.run(launcher, **arguments)
        except SimtError as error:
            error.__class__ = type(error.kind.replace(" ", "_"), (SimtError,), {})
            raise


def finished(file: str) -> Kernels:
    """The finished file of a lab with its check kernels."""
    return Kernels(file, handout(file) + handout(file.replace(".cu", "_check.cu")))


def edited(file: str, old: str, new: str) -> Kernels:
    """The finished file with one mistake in it."""
    text = handout(file)
    if text.count(old) != 1:
        raise LookupError(f"{file} has {old!r} {text.count(old)} times")
    return Kernels(file, text.replace(old, new) + handout(file.replace(".cu", "_check.cu")))


def judge_section(lab: CudaLab, task: Task, text: str, file: Path) -> Row:
    """Judge one task of the student's text."""
    mine, check = sections(text), handout(lab.file.replace(".cu", "_check.cu"))
    numbers = sections(lab.solution())
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
        return judge(task, Kernels(lab.file, whole), finished(lab.file), file)
    line, body = mine[task.number]
    own = f'#line 1 "the lab\'s own part of {file.name}"\n'
    body = f'#line {line} "{file.name}"\n{body}{own}'
    assembled = own + replaced(lab.solution(), task.number, body) + check
    return judge(task, Kernels(lab.file, assembled), finished(lab.file), file)


def load_source(file: Path) -> ModuleType:
    """A student's .cu file as a module with nothing but its text in it."""
    module = ModuleType("student_lab")
    module.source = file.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    return module
