"""Is a part of the file the student's own? Two questions, asked before it runs and of the file's text.

borrowed()   the object is the engine's (imported, re-exported, inherited), or was made at run time (exec)
copied()     a long function has the engine's code, up to names, comments and annotations

An engine object is refused. Equal code may be honest (few ways to write a short function), so it is shown,
and the lecturer decides.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from operator import attrgetter, itemgetter
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.cuda_text import sections
from minillm.labs.grader.intercept import plain_function
from minillm.labs.grader.lab import Lab, Part
from minillm.labs.grader.skeleton import Function, solution
from minillm.labs.grader.tripwire import theirs

_CACHED = type(lru_cache(len))
LONG = 60  # nodes of the syntax tree, or words of CUDA: shorter functions are often equal by chance
_WRAPPERS = (_CACHED, FunctionType, MethodType, partial, staticmethod, classmethod, property)


def borrowed(part: Part, module: ModuleType, file: Path) -> str:
    """Why `part` in the student's module is not the file's own; "" if it is."""
    for label, mine, own in _pairs(part, vars(module).get(part.name)):
        layers = list(_layers(mine))
        own_function = plain_function(own)
        if any(layer is own or (own_function and layer is own_function) for layer in layers if layer):
            kind = "class" if isinstance(own, type) else "function"
            return f"{label} is the engine's own {kind}, imported from {part.module}: write it in {file.name}"
        functions = [layer for layer in layers if isinstance(layer, FunctionType)]
        is_plain = mine is None or isinstance(mine, type | attrgetter | itemgetter)
        if not is_plain and not any(theirs(f.__code__.co_filename, str(file.parent)) for f in functions):
            return f"{label} was made at run time or comes from elsewhere: write it in {file.name}"
    return ""


def _pairs(part: Part, mine: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, the student's, the engine's) of a function, or of each method that the student writes."""
    own = part.own
    if not isinstance(own, type):
        yield part.name, mine, own
        return
    yield part.name, None if part.methods else mine, own
    for name in part.methods or [name for name, value in vars(own).items() if plain_function(value)]:
        yield f"{part.name}.{name}", _method(mine, name), _method(own, name)


def _method(owner: Any, name: str) -> Any:
    """A class's method without binding it; found in a base class too."""
    bases = type.__getattribute__(owner, "__mro__") if isinstance(owner, type) else ()
    return next((vars(base)[name] for base in bases if name in vars(base)), None)


def _layers(value: Any, depth: int = 0) -> Iterator[Any]:
    """`value` and what it wraps: decorators, partials, methods, functions in a closure."""
    yield value
    inner = [inspect.getattr_static(value, "__wrapped__", None)]
    if isinstance(value, FunctionType):
        inner += [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
    elif isinstance(value, partial):
        inner += [value.func, *value.args]
    elif isinstance(value, MethodType | staticmethod | classmethod):
        inner.append(value.__func__)
    elif isinstance(value, property):
        inner.append(value.fget)
    elif not isinstance(value, type):
        inner.append(_method(type(value), "__call__"))
    for layer in inner:
        if depth < 5 and isinstance(layer, _WRAPPERS):
            yield from _layers(layer, depth + 1)


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


# --- equal sources ------------------------------------------------------------------------------------


def copied(lab: Lab, text: str) -> list[str]:
    """The tasks whose part has the engine's code, as "1.4 sample"."""
    forms, own = _forms(lab, text), _forms(lab, solution(lab))
    return [
        f"{task.number} {task.part.label}"
        for task in lab.tasks
        if task.part and own.get(task.number) and forms.get(task.number) == own[task.number]
    ]


def _forms(lab: Lab, text: str) -> dict[str, list[str]]:
    """The code of each task without names, comments and layout; only of long ones."""
    if isinstance(lab, CudaLab):
        words = {number: _words(body) for number, (_, body) in sections(text).items()}
        return {number: found for number, found in words.items() if len(found) >= LONG}
    try:
        functions = _functions(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last: too deep for the parser
        return {}
    forms: dict[str, list[str]] = {}
    for task in lab.tasks:
        names = [] if task.part is None else task.part.label.split(", ")
        nodes = [functions[name] for name in names if name in functions]
        if nodes and sum(_size(node) for node in nodes) >= LONG:
            forms[task.number] = [_form(node) for node in nodes]
    return forms


def _functions(tree: ast.Module) -> dict[str, Function]:
    """Functions by name, methods by `Class.name`."""
    found = {node.name: node for node in tree.body if isinstance(node, Function)}
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef):
            found |= {f"{owner.name}.{node.name}": node for node in owner.body if isinstance(node, Function)}
    return found


def _body(node: Function) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node) else node.body


def _size(node: Function) -> int:
    return sum(1 for statement in _body(node) for _ in ast.walk(statement))


def _form(node: Function) -> str:
    """The function's body with its own names numbered in the order of their first use."""
    stored = {x.arg for x in ast.walk(node) if isinstance(x, ast.arg)}
    stored |= {x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
    tree = ast.parse(ast.unparse(ast.Module([*_body(node)], [])))
    arguments = [x.arg for x in ast.walk(node.args) if isinstance(x, ast.arg)]
    numbers = {name: f"v{i}" for i, name in enumerate(arguments)}
    for x in ast.walk(tree):
        if isinstance(x, ast.AnnAssign):
            x.annotation = ast.Constant(None)
        if isinstance(x, ast.Name) and x.id in stored:
            x.id = numbers.setdefault(x.id, f"v{len(numbers)}")
        elif isinstance(x, ast.arg):
            x.arg, x.annotation = numbers.setdefault(x.arg, f"v{len(numbers)}"), None
    return ast.dump(tree)


def _words(body: str) -> list[str]:
    """CUDA code as words and signs; own names are numbered."""
    body = re.sub(r"//[^\n]*|/\*.*?\*/", " ", body, flags=re.DOTALL)
    names: dict[str, str] = {}
    local = set(re.findall(r"\b(?:int|float|auto|bool|unsigned)\s*&?\s*(\w+)", body))
    words = re.findall(r"\w+|[^\w\s]", body)
    return [names.setdefault(w, f"v{len(names)}") if w in local else w for w in words]
