"""Has the file replaced something of the engine or of torch that the check uses?

A fingerprint is taken before the file is loaded, and compared after loading and after every case:

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
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch

from minillm.labs.grader.intercept import plain_function

_CHECKED = (FunctionType, BuiltinFunctionType, type, ModuleType, property, classmethod, staticmethod)
_OTHERS = (torch, torch.nn.functional, builtins, json)
_OTHER_CLASSES = (torch.Tensor,)
Fingerprint = dict[tuple[str, str], tuple[int, ...]]


def fingerprint() -> Fingerprint:
    """The identity of everything that is checked."""
    found: Fingerprint = {}
    for name, module in _modules():
        found[name, ""] = (id(module), id(type(module)))
        for key, value in list(vars(module).items()):
            if isinstance(value, _CHECKED):
                found[name, key] = _identity(value)
            if isinstance(value, type) and value.__module__ == name and name.startswith("minillm."):
                found |= _class(value)
    for kind in _OTHER_CLASSES:
        found |= _class(kind)
    return found


def changed(before: Fingerprint) -> str:
    """The first thing of `before` that was replaced or removed, as a dotted name; "" if all are as they were."""
    now = fingerprint()
    for (owner, name), identity in before.items():
        if now.get((owner, name)) != identity:
            return f"{owner}.{name}".rstrip(".")
    # A method that a class inherited can be hidden by a new one.
    classes = {owner for owner, name in before if name == "__bases__"}
    return next((f"{o}.{n}" for o, n in now if o in classes and (o, n) not in before), "")


def _modules() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if name == "minillm" or name.startswith("minillm."):
            yield name, module
    yield from ((module.__name__, module) for module in _OTHERS)


def _class(kind: type) -> Fingerprint:
    name = f"{kind.__module__}.{kind.__qualname__}"
    found = {(name, key): _identity(v) for key, v in list(vars(kind).items()) if isinstance(v, _CHECKED)}
    return {(name, "__bases__"): tuple(id(base) for base in kind.__bases__), **found}


def _identity(value: Any) -> tuple[int, ...]:
    function = plain_function(value)
    if function is None:
        return (id(value),)
    return id(value), id(function.__code__), id(function.__defaults__), id(function.__kwdefaults__)
