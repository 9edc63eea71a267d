"""Load a student's file, and take from it the part that a task judges."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from minillm.labs.grader.answers import first_line
from minillm.labs.grader.borrowed import borrowed
from minillm.labs.grader.cuda_judge import NotJudged, load_source, section_kernels
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Lab, Part, Task


def load(file: Path) -> ModuleType:
    """Run the student's file as a module. It can import modules beside it, but these never hide others."""
    sys.path.append(str(file.parent))
    if file.suffix == ".cu":
        sys.modules["student_lab"] = load_source(file)
        return sys.modules["student_lab"]
    spec = importlib.util.spec_from_file_location("student_lab", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["student_lab"] = module
    spec.loader.exec_module(module)
    return module


def load_error(error: BaseException, file: Path) -> str:
    """The error's type, line in the file and message, on one line."""
    steps = [step for step in traceback.walk_tb(error.__traceback__)]
    lines = [line for frame, line in steps if frame.f_code.co_filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    at = f" in line {line}" if line else ""
    text = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return f"{type(error).__name__}{at}: {text}" if text else f"{type(error).__name__}{at}"


@contextmanager
def part_of(lab: Lab, task: Task, module: ModuleType, file: Path) -> Iterator[Any]:
    """What the cases of `task` receive. Inside the `with`, the file's other parts are the engine's own.

    Raises:
        NotJudged: the part is missing, not written, or not the file's own.
    """
    if isinstance(lab, CudaLab):
        yield section_kernels(lab, task, module.source, file)
        return
    for part in [task.part] if task.part else lab.parts:
        if lost := _missing(module, part):
            raise NotJudged("missing", f"{file.name} has no {lost}: start from the skeleton")
        if why := borrowed(part, module, file):
            raise NotJudged("engine", why)
    if task.part is None:
        # Not the module itself: its class, and so its attributes, can be replaced.
        yield SimpleNamespace(**{part.name: vars(module)[part.name] for part in lab.parts})
        return
    with _around(lab, task.part, module):
        yield vars(module)[task.part.name]


@contextmanager
def _around(lab: Lab, part: Part, module: ModuleType) -> Iterator[None]:
    """Replace all other parts by the engine's own, so that only `part` is judged."""
    saved: list[tuple[Any, str, Any]] = []
    for other in lab.parts:
        if other == part:
            continue
        mine = getattr(module, other.name, None)
        if other.name != part.name:
            saved.append((module, other.name, mine))
            setattr(module, other.name, other.own)
        else:
            for name in (*other.methods, *other.helpers):
                saved.append((mine, name, getattr(mine, name, None)))
                setattr(mine, name, getattr(other.own, name))
    try:
        yield
    finally:
        for holder, name, value in reversed(saved):
            setattr(holder, name, value)


def _missing(module: ModuleType, part: Part) -> str:
    """The name of the first function or method of `part` that the file does not have, or ""."""
    mine = vars(module).get(part.name)
    if not callable(mine):
        return part.name
    return next((f"{part.name}.{name}" for name in part.methods if not hasattr(mine, name)), "")
