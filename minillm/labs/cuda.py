"""Labs in CUDA: the student's file is a .cu, run in the simulator, checked section by section.

    handouts/lab7.cu         // begin 7.2          the finished file; a skeleton is the same without what
                             ...                   stands between the two lines
                             // end 7.2
    handouts/lab7_check.cu                         kernels around single functions, for the checks only

To check one task, its section of the student's file is put into the finished file, so a mistake in
another section blames nobody else. `#line` keeps the student's own line numbers in every message.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from minillm.errors import UsageError
from minillm.labs.judge import judge
from minillm.labs.lab import Lab, Part, Task
from minillm.labs.row import Row, failed
from minillm.ops.simt import KernelLibrary, Profile, SimtError, compile_kernels, flavour, profile

_HANDOUTS = Path(__file__).parent / "handouts"
_STUB = "NOT_WRITTEN();"


def sections(text: str) -> dict[str, tuple[int, str]]:
    """{task number: (line after its `// begin`, the lines up to `// end`)}."""
    found = re.finditer(r"^ *// begin (\S+)[^\n]*\n(.*?)^ *// end \1 *$", text, re.MULTILINE | re.DOTALL)
    return {m[1]: (text.count("\n", 0, m.start(2)) + 1, m[2]) for m in found}


def replaced(text: str, number: str, body: str) -> str:
    """`text` with another section `number`."""
    pattern = rf"(^ *// begin {re.escape(number)}\b[^\n]*\n).*?(^ *// end {re.escape(number)} *$)"
    return re.sub(pattern, lambda m: m[1] + body + m[2], text, count=1, flags=re.MULTILINE | re.DOTALL)


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
        if _STUB in self.text:
            raise NotImplementedError("Lab: not written yet")
        library = self._library
        try:
            with flavour("check"), profile() as self.counted:
                library.run(launcher, **arguments)
        except SimtError as error:
            error.__class__ = type(error.kind.replace(" ", "_"), (SimtError,), {})
            raise


@dataclass(frozen=True)
class Section(Part):
    """A section of a CUDA lab: `module` is the lab's file, `methods` the task's number alone."""

    @property
    def own(self) -> Kernels:
        """The finished file."""
        return finished(self.module)

    @property
    def label(self) -> str:
        """What the section is called."""
        return self.name


def finished(file: str) -> Kernels:
    """The finished file of a lab with its check kernels."""
    return Kernels(file, _text(file) + _text(file.replace(".cu", "_check.cu")))


def edited(file: str, old: str, new: str) -> Kernels:
    """The finished file with one mistake in it."""
    text = _text(file)
    if text.count(old) != 1:
        raise LookupError(f"{file} has {old!r} {text.count(old)} times")
    return Kernels(file, text.replace(old, new) + _text(file.replace(".cu", "_check.cu")))


def _text(file: str) -> str:
    return (_HANDOUTS / file).read_text(encoding="utf-8")


@dataclass(frozen=True)
class CudaLab(Lab):
    """A lab whose file is `labN.cu`."""

    @property
    def file(self) -> str:
        """Name of the student's file."""
        return f"lab{self.number}.cu"

    def solution(self) -> str:
        """The finished file."""
        return _text(self.file)

    def skeleton(self) -> str:
        """The file a student starts from."""
        text = self.solution()
        for number in sections(text):
            text = replaced(text, number, f"  {_STUB}  // stuck? minillm labs hint {number}\n")
        return text

    def judge_file(self, task: Task, text: str, file: Path) -> Row:
        """Judge one task of the student's text."""
        mine, check = sections(text), _text(self.file.replace(".cu", "_check.cu"))
        numbers = sections(self.solution())
        for number in [task.number] if task.part else numbers:
            if number not in mine:
                lost = f"// begin {number} ... // end {number}"
                return failed(task, "missing", f"{file.name} has no {lost}: start from the skeleton")
            if _STUB in mine[number][1]:
                name = task.part.label if task.part else "the whole kernel"
                hint = f"minillm labs hint {task.number}"
                return failed(task, "todo", f"Lab {task.number} {name}; hint: {hint}")
        if task.part is None:
            whole = f'#line 1 "{file.name}"\n{text}\n{check}'
            return judge(task, Kernels(self.file, whole), finished(self.file), file)
        line, body = mine[task.number]
        own = f'#line 1 "the lab\'s own part of {file.name}"\n'
        body = f'#line {line} "{file.name}"\n{body}{own}'
        assembled = own + replaced(self.solution(), task.number, body) + check
        return judge(task, Kernels(self.file, assembled), finished(self.file), file)


def load_source(file: Path) -> ModuleType:
    """A student's .cu file as a module with nothing but its text in it."""
    module = ModuleType("student_lab")
    module.source = file.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    return module


Run = Callable[[Kernels], Any]
