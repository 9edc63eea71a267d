"""While a student's part is judged, the engine's own part must not answer in its place.

The engine's functions of the task are intercepted (`intercept.py`). A call is refused if the student's code
is below it on the stack, however it got the function; the engine itself may call its own functions. A case
never calls them: if it seems so, the student has put the function, or a method of it, in place of its own.

    case -> student's sample -> helper -> engine's sample      refused
    case -> engine's sample                                    refused
    case -> engine.step      -> engine's sample                allowed

Code that belongs to no file (`exec`) is the student's.

In the task of the whole file the engine runs with the student's parts, so the student's code is always on
the stack somewhere. There only the caller counts: a call of a function that comes from the student's file is
refused. The methods are refused from everywhere: the student's class has replaced the engine's.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.intercept import Before, intercepted, plain_function
from minillm.labs.grader.lab import Lab, Part, Task

ENGINE = str(Path(__file__).parents[2]) + "/"
GRADER = str(Path(__file__).parent) + "/"
_LABS = str(Path(__file__).parents[1]) + "/"
_LIBRARIES = tuple(
    dict.fromkeys(os.path.dirname(os.path.realpath(path)) + "/" for path in (os.__file__, torch.__path__[0]))
)
_frame, _thread, _MAIN = sys._getframe, get_ident, get_ident()  # not by name: a file can replace names
# Folders that may lie inside the student's, for example if that is the repository.
_NOT_THEIRS = tuple(dict.fromkeys((ENGINE, *(f"{p}/lib/" for p in (sys.prefix, sys.base_prefix)))))


class Refused(BaseException):
    """The file did what a check does not allow. Not an Exception: `except Exception` must not hide it."""


def tripwires(
    lab: Lab, task: Task, folder: Path, refuse: Callable[[str], None]
) -> AbstractContextManager[None]:
    """Refuse calls of the engine's own functions of `task` from code in `folder`."""
    if isinstance(lab, CudaLab):
        return nullcontext()  # its file has no Python
    parts = [task.part] if task.part else lab.parts
    functions = {function: label for part in parts for function, label in own_functions(part)}

    def before(function: FunctionType) -> Before:
        is_refused = _rule(task, functions[function])

        def check(_: tuple[Any, ...]) -> None:
            if is_refused(_frame(1), str(folder)):
                why = f"the file calls the engine's own {functions[function]}: write it in {lab.file}"
                refuse(why)
                raise Refused(why)

        return check

    return intercepted(functions, before)


def _rule(task: Task, label: str) -> Callable[[FrameType | None, str], bool]:
    """Which calls of the engine's own function or method are refused."""
    if task.part:
        return _is_not_the_engines
    return _is_anything if "." in label else student_calls


def own_functions(part: Part) -> Iterator[tuple[FunctionType, str]]:
    """The engine's functions of a part and its helpers, with their names."""
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


def _is_not_the_engines(frame: FrameType | None, folder: str) -> bool:
    """Whether a call is the student's, or comes from a case and not from the engine."""
    if student_is_below(frame, folder):
        return True
    while frame is not None and not frame.f_code.co_filename.startswith(ENGINE):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_LABS)


def _is_anything(_: FrameType | None, __: str) -> bool:
    return True


def is_students(frame: FrameType, folder: str) -> bool:
    """Whether code is the student's: it is in its files, or in no file of the engine or of a library."""
    name = frame.f_code.co_filename
    is_first = frame.f_back is None  # the command that started this process
    return theirs(name, folder) or (
        not is_first and not name.startswith((*_LIBRARIES, *_NOT_THEIRS, "<frozen ", "<cases>"))
    )


def theirs(filename: str, folder: str) -> bool:
    """Whether code of this file is the student's: the file itself, or a module beside it."""
    return filename.startswith(folder + "/") and not filename.startswith(_NOT_THEIRS)


def student_is_below(frame: FrameType | None, folder: str) -> bool:
    """Whether the student's code is on the stack. Other threads than the first are the student's."""
    while frame is not None:
        if is_students(frame, folder):
            return True
        frame = frame.f_back
    return _thread() != _MAIN


def student_calls(frame: FrameType | None, folder: str) -> bool:
    """Whether the nearest code that is the engine's or the student's is the student's."""
    while frame is not None:
        if is_students(frame, folder):
            return True
        name = frame.f_code.co_filename
        if name.startswith(ENGINE) and not name.startswith(GRADER):
            return False
        frame = frame.f_back
    return _thread() != _MAIN
