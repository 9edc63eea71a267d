"""While a student's part is judged, the engine's own part must not answer in its place.

The engine's functions of the task are intercepted (`intercept.py`). A call is refused if the student's code
is below it on the stack, however it got the function; the engine itself may call its own functions.

    case -> student's sample -> helper -> engine's sample      refused
    case -> engine.step      -> engine's sample                allowed

In the task of the whole file the engine runs with the student's parts, so the student's code is always on
the stack somewhere. There only the caller counts: a call that comes from the student's file is refused.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

from minillm.labs.grader.cuda_lab import Section
from minillm.labs.grader.intercept import Before, intercepted, plain_function
from minillm.labs.grader.lab import Lab, Part, Task

ENGINE = str(Path(__file__).parents[2]) + "/"
GRADER = str(Path(__file__).parent) + "/"
# Folders that may lie inside the student's, for example if that is the repository.
_NOT_THEIRS = tuple(dict.fromkeys((ENGINE, *(f"{p}/lib/" for p in (sys.prefix, sys.base_prefix)))))


class Refused(BaseException):
    """The file did what a check does not allow. Not an Exception: `except Exception` must not hide it."""


def tripwires(
    lab: Lab, task: Task, folder: Path, refuse: Callable[[str], None]
) -> AbstractContextManager[None]:
    """Refuse calls of the engine's own functions of `task` from code in `folder`."""
    parts = [task.part] if task.part else lab.parts
    functions = {function: label for part in parts for function, label in own_functions(part)}
    called_by = student_is_below if task.part else student_calls

    def before(function: FunctionType) -> Before:
        def check(_: tuple[Any, ...]) -> None:
            if called_by(sys._getframe(1), str(folder)):
                why = f"the file calls the engine's own {functions[function]}: write it in {lab.file}"
                refuse(why)
                raise Refused(why)

        return check

    return intercepted(functions, before)


def own_functions(part: Part) -> Iterator[tuple[FunctionType, str]]:
    """The engine's functions of a part and its helpers, with their names."""
    if isinstance(part, Section):  # CUDA: a text, not a function
        return
    own = part.own
    if not part.methods:
        module = sys.modules[part.module]
        found = [(own, part.name), *((getattr(module, name), name) for name in part.helpers)]
    else:
        names = (*part.methods, *part.helpers)
        found = [(vars(own).get(name), f"{part.name}.{name}") for name in names]
    for value, label in found:
        function = plain_function(value)
        if function is not None:
            yield function, label
    if isinstance(own, type) and not part.methods:
        for name, value in vars(own).items():
            method = plain_function(value)
            if method is not None and method.__module__ == own.__module__:
                yield method, f"{part.name}.{name}"


def theirs(filename: str, folder: str) -> bool:
    """Whether code of this file is the student's: the file itself, or a module beside it."""
    return filename.startswith(folder + "/") and not filename.startswith(_NOT_THEIRS)


def student_is_below(frame: FrameType | None, folder: str) -> bool:
    """Whether the student's code is on the stack. Other threads than the first are the student's."""
    while frame is not None:
        if theirs(frame.f_code.co_filename, folder):
            return True
        frame = frame.f_back
    return threading.current_thread() is not threading.main_thread()


def student_calls(frame: FrameType | None, folder: str) -> bool:
    """Whether the nearest code that is the engine's or the student's is the student's."""
    while frame is not None:
        name = frame.f_code.co_filename
        if theirs(name, folder):
            return True
        if name.startswith(ENGINE) and not name.startswith(GRADER):
            return False
        frame = frame.f_back
    return threading.current_thread() is not threading.main_thread()
