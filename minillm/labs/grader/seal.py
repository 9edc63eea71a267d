"""Code that a student's file cannot change, although it runs in the same process.

A function looks its helpers up by name, in the dictionary of its module, each time it runs. A file that
replaces a helper there, and restores it before the next comparison (`integrity.py`), has changed the check:

    tripwire.theirs = lambda *_: False; answer = engines_part(...); tripwire.theirs = saved

So what must not change runs as a copy, with globals of its own that no module and no class leads to. The
grader's modules are hidden, too: an import of one reads the engine's source, which `audit.py` refuses.
Left out: replaced functions of Python's library, and of the labs' cases.
"""

from __future__ import annotations

import sys
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeVar, cast

import minillm.labs

_GRADER = "minillm.labs.grader"
Spaces = dict[int, dict[str, Any]]
Call = TypeVar("Call")


def sealed(function: Call, spaces: Spaces | None = None) -> Call:
    """A copy of a function, which calls copies of the grader's other functions."""
    spaces = {} if spaces is None else spaces
    plain = cast(FunctionType, function)
    space = _space(plain.__globals__, spaces)
    copy = FunctionType(plain.__code__, space, plain.__name__, plain.__defaults__, plain.__closure__)
    copy.__kwdefaults__, copy.__dict__ = plain.__kwdefaults__, dict(plain.__dict__)
    return cast(Call, copy)


def sealed_object(value: Any) -> Any:
    """An object with the attributes of `value` and copies of its methods. Its class knows nothing of them."""
    me, spaces = SimpleNamespace(**vars(value)), cast(Spaces, {})
    for name, method in vars(type(value)).items():
        if isinstance(method, FunctionType) and not name.startswith("__"):
            setattr(me, name, MethodType(sealed(method, spaces), me))
    return me


def hide_grader() -> list[ModuleType]:
    """Take the grader's modules out of Python's table of modules; return them. They go on working."""
    names = [name for name in sys.modules if name == _GRADER or name.startswith(f"{_GRADER}.")]
    vars(minillm.labs).pop("grader", None)
    vars(sys.modules["__main__"]).pop("child", None)
    return [sys.modules.pop(name) for name in names]


def _space(names: dict[str, Any], spaces: Spaces) -> dict[str, Any]:
    """A copy of a module's names. One copy for each module, because its functions may share a list."""
    if id(names) not in spaces:
        space = spaces[id(names)] = dict(names)
        for name, value in names.items():
            if isinstance(value, FunctionType) and value.__module__.startswith(_GRADER):
                space[name] = sealed(value, spaces)
            elif type(value) in (dict, list, set):
                space[name] = value.copy()
    return spaces[id(names)]
