"""While a student's part is judged, the engine's own part must not answer in its place.

The engine's functions of the task are intercepted (`intercept.py`), and a call is refused whoever makes it:

    case   -> student's sample -> helper -> engine's sample      refused
    case   -> engine's sample, by another name or in an object   refused
    engine -> functools or a property -> engine's sample         refused

It does not matter what the student has put around the function, because no case needs the engine's own:
the case or the engine calls the student's part instead. There are two exceptions.

    in the task of the whole file, a part that the engine does not take from outside (`Part.engine_calls`):
                          refused only if the student's code is below it on the stack
    while the file is loaded, before any case:
                          refused only if the student's code makes the call; the engine may call its own parts
                          in a program at the top of the file. A trace of the function (`torch.jit.trace`)
                          would answer later without a call.

Code that belongs to no file (`exec`) is the student's.
"""

from __future__ import annotations

import importlib
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
_LIBRARIES = tuple(
    dict.fromkeys(os.path.dirname(os.path.realpath(path)) + "/" for path in (os.__file__, torch.__path__[0]))
)
_frame, _thread, _MAIN = sys._getframe, get_ident, get_ident()  # not by name: a file can replace names
# Folders that may lie inside the student's, for example if that is the repository.
_NOT_THEIRS = tuple(dict.fromkeys((ENGINE, *(f"{p}/lib/" for p in (sys.prefix, sys.base_prefix)))))


class Refused(BaseException):
    """The file did what a check does not allow. Not an Exception: `except Exception` must not hide it."""


def tripwires(
    lab: Lab, task: Task | None, folder: Path, refuse: Callable[[str], None]
) -> AbstractContextManager[None]:
    """Refuse calls of the engine's own functions of `task`, or of all tasks while the file is loaded (None).

    `folder` is the student's.
    """
    if isinstance(lab, CudaLab):
        return nullcontext()  # its file has no Python
    parts = [task.part] if task and task.part else lab.parts
    own = {function: (label, _rule(task, part)) for part in parts for function, label in own_functions(part)}

    def before(function: FunctionType) -> Before:
        label, is_refused = own[function]

        def check(_: tuple[Any, ...]) -> None:
            if is_refused(_frame(1), str(folder)):
                why = f"the file calls the engine's own {label}: write it in {lab.file}"
                refuse(why)
                raise Refused(why)

        return check

    return intercepted(own, before)


def _rule(task: Task | None, part: Part) -> Callable[[FrameType | None, str], bool]:
    """Which calls of the engine's own functions of `part` are refused."""
    if task is None:
        return student_calls
    return student_is_below if part.engine_calls and not task.part else _is_anything


def own_functions(part: Part) -> Iterator[tuple[FunctionType, str]]:
    """The engine's functions of a part, its helpers and its twins, with their names."""
    own = part.own
    if not part.methods:
        module = sys.modules[part.module]
        found = [(own, part.name), *((getattr(module, name), name) for name in part.helpers)]
    else:
        names = (*part.methods, *part.helpers)
        found = [(vars(own).get(name), f"{part.name}.{name}") for name in names]
    found += [(getattr(importlib.import_module(module), name), name) for module, name in part.twins]
    for value, label in found:
        function = plain_function(value)
        if function is not None:
            yield function, label
    if isinstance(own, type) and not part.methods:
        for name, value in vars(own).items():
            method = plain_function(value)
            if method is not None and method.__module__ == own.__module__:
                yield method, f"{part.name}.{name}"


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
