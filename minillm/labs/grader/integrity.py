"""Has the file replaced something of the engine or of torch that the check uses?

A snapshot is taken before the file is loaded. It is compared after loading and after every case; functions
are looked into after every task.

    modules      sys.modules["minillm.x"]
    their names  functions, classes, modules          by identity
    classes      methods and bases                    by identity
    functions    code, defaults                       by identity

Values that are no functions or classes may change: the engine fills its caches. What is replaced and restored
inside one call is not seen here; `meter.py` counts the passes of the model independently of names.
"""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch

from minillm.labs.grader.intercept import plain_function

_CHECKED = (FunctionType, BuiltinFunctionType, type, ModuleType, property, classmethod, staticmethod)
_OTHERS = (torch, torch.nn.functional, builtins, json)


class Snapshot:
    """Everything that is checked, as it is now. `hidden`: modules that are not in `sys.modules`."""

    def __init__(self, hidden: Sequence[ModuleType] = ()) -> None:
        modules = list(_modules())
        self._modules = [(name, module, type(module)) for name, module in modules]
        modules += [(module.__name__, module) for module in hidden]
        self._classes = [(kind, kind.__bases__, set(vars(kind))) for kind in _classes(modules)]
        owners: list[tuple[str, Mapping[str, Any]]] = [(name, vars(module)) for name, module in modules]
        owners += [(f"{kind.__module__}.{kind.__qualname__}", vars(kind)) for kind, _, _ in self._classes]
        self._names = [(name, owner, _checked(owner)) for name, owner in owners]
        self._functions = list(_functions(self._names))

    def changed(self, functions: bool = True) -> str:
        """The first thing that was replaced, hidden or removed since, as a dotted name; "" if there is none.

        `functions`: look into them too. That is slow where an audit hook sees each look (`audit.py`).
        """
        for name, module, kind in self._modules:
            if sys.modules.get(name) is not module or type(module) is not kind:
                return name
        for name, owner, values in self._names:
            for key, value in values.items():
                if owner.get(key) is not value:
                    return f"{name}.{key}"
        for kind, bases, keys in self._classes:
            # A method that a class inherits can be hidden by a new one.
            new = [key for key in vars(kind).keys() - keys if isinstance(vars(kind)[key], _CHECKED)]
            if kind.__bases__ != bases or new:
                return f"{kind.__module__}.{kind.__qualname__}.{new[0] if new else '__bases__'}"
        for name, function, code, defaults in self._functions if functions else ():
            if function.__code__ is not code or _defaults(function) != defaults:
                return name
        return ""


def _modules() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if name == "minillm" or name.startswith("minillm."):
            yield name, module
    yield from ((module.__name__, module) for module in _OTHERS)


def _classes(modules: list[tuple[str, ModuleType]]) -> Iterator[type]:
    """The classes that the engine's modules define, and torch's tensor."""
    for name, module in modules:
        if name.startswith("minillm."):
            yield from (v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)
    yield torch.Tensor


def _checked(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in list(owner.items()) if isinstance(value, _CHECKED)}


def _functions(
    names: list[tuple[str, Mapping[str, Any], dict[str, Any]]],
) -> Iterator[tuple[str, FunctionType, CodeType, tuple[int, int]]]:
    """The engine's functions with their code and defaults."""
    for name, _, values in names:
        for key, value in values.items():
            function = plain_function(value)
            if function is not None and name.startswith("minillm."):
                yield f"{name}.{key}", function, function.__code__, _defaults(function)


def _defaults(function: FunctionType) -> tuple[int, int]:
    return id(function.__defaults__), id(function.__kwdefaults__)
