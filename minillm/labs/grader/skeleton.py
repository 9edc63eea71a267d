"""From the engine's source to a student's file: signatures and docstrings stay, bodies are removed.

    engine module                              labN.py
    def keep_top(logits, ...):       ->        def keep_top(logits, ...):
        \"\"\"Keep the ...\"\"\"                       \"\"\"Keep the ...\"\"\"
        ordered, ids = ...                         raise NotImplementedError("Lab 1.2 ...")

If the bodies use a name that is not a part of the lab, the file imports it from the engine. The solution is
the same file with the bodies. Neither file is written by hand.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import cache

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Lab, Part
from minillm.labs.grader.recorded import skeleton_name

_WIDTH, _INDENT = 110, 4  # ruff's line-length in pyproject.toml; a method's body is indented twice
Function = ast.FunctionDef | ast.AsyncFunctionDef


def skeleton(lab: Lab) -> str:
    """The file from which a student starts."""
    made = lab.package / skeleton_name(lab)
    if made.exists():  # in a student package
        return made.read_text(encoding="utf-8")
    if isinstance(lab, CudaLab):
        return lab.skeleton()
    return _file(lab, solved=False)


def solution(lab: Lab) -> str:
    """The same file with the engine's own bodies."""
    if isinstance(lab, CudaLab):
        return lab.solution()
    return _file(lab, solved=True)


def _file(lab: Lab, solved: bool) -> str:
    order = {part.name: part for part in lab.parts}
    bodies = [body for name in order for body in _sources(lab, name, solved)]
    return "\n\n\n".join(["\n\n".join([_opening(lab), *_imports(lab, solved)]), *bodies]) + "\n"


def _opening(lab: Lab) -> str:
    n = lab.number
    return textwrap.dedent(f'''\
        # ruff: noqa: F401 - imports that the finished file uses
        """Lab {n}: {lab.title}.

        Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
        is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

            minillm labs check {n}        run the checks
            minillm labs hint {n}.1       a hint; --level 2 and --level 3 give more detail

        Made from the engine's source by `minillm labs start {n}`.
        """

        from __future__ import annotations''')


# --- the parts ----------------------------------------------------------------------------------------


@cache
def _module(name: str) -> tuple[ast.Module, list[str]]:
    source = inspect.getsource(importlib.import_module(name))
    return ast.parse(source), source.splitlines()


def _node(module: str, name: str) -> Function | ast.ClassDef:
    for node in _module(module)[0].body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"{module} defines no {name}")


def _helpers(part: Part) -> tuple[str, ...]:
    """Functions that the part's own body calls and a skeleton leaves out."""
    return () if part.methods else part.helpers


def _sources(lab: Lab, name: str, solved: bool) -> Iterator[str]:
    """The top-level `name`, then the functions that only the solution has."""
    yield _source(lab, name, solved)
    part = next(part for part in lab.parts if part.name == name)
    for helper in _helpers(part) if solved else ():
        node = _node(part.module, helper)
        yield "\n".join(_module(part.module)[1][_start(node) - 1 : _end(node)])


def _source(lab: Lab, name: str, solved: bool) -> str:
    """The lines of the top-level `name`; unless `solved`, without the bodies that the student writes."""
    parts = [part for part in lab.parts if part.name == name]
    node, lines = _node(parts[0].module, name), list(_module(parts[0].module)[1])
    edits: list[tuple[int, int, list[str]]] = []
    for part in [] if solved else parts:
        if isinstance(node, Function):
            edits.append(_emptied(node, _stub(lab, part)))
            continue
        methods = {child.name: child for child in node.body if isinstance(child, Function)}
        edits += [_emptied(methods[method], _stub(lab, part)) for method in part.methods]
        # Remove a helper together with the blank line before it.
        edits += [(_start(methods[helper]) - 1, _end(methods[helper]), []) for helper in part.helpers]
    end = _end(node)
    for start, stop, new in sorted(edits, reverse=True):
        lines[start - 1 : stop] = new
        end += len(new) - (stop - start + 1)
    return "\n".join(lines[_start(node) - 1 : end])


def _emptied(function: Function, stub: list[str]) -> tuple[int, int, list[str]]:
    """The edit that replaces a function's body by `stub` and keeps its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    # Begin after the docstring or signature, so that comments above the body are removed too.
    start = _end(function.body[0]) + 1 if body is not function.body else body[0].lineno
    indent = " " * function.body[0].col_offset
    return start, _end(function), [indent + line for line in stub]


def _stub(lab: Lab, part: Part) -> list[str]:
    numbers = [task.number for task in lab.tasks_of(part)]
    first = numbers[0]
    span = first if len(numbers) == 1 else f"{first} to {numbers[-1]}"
    message = f'"Lab {span} {part.label}; hint: minillm labs hint {first}"'
    stub = [f"raise NotImplementedError({message})"]
    if len(stub[0]) + 2 * _INDENT > _WIDTH:
        stub = ["raise NotImplementedError(", " " * _INDENT + message, ")"]
    return [*(f"# Stuck? minillm labs hint {number}" for number in numbers), *stub]


def _start(node: Function | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


# --- the imports --------------------------------------------------------------------------------------


def _imports(lab: Lab, solved: bool) -> Iterator[str]:
    """Blocks of import lines: the standard library, other packages, minillm.

    Only the solution imports private names.
    """
    wanted: dict[str, set[str]] = {}  # module -> names; a plain import has the name ""
    for part in lab.parts:
        nodes = [_node(part.module, name) for name in (part.name, *_helpers(part))]
        used = {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}
        for name in used - {own.name for own in lab.parts} - set(_helpers(part)):
            if name.startswith("_") and not solved:
                continue
            module, imported = _origin(part.module, name)
            if module:
                wanted.setdefault(module, set()).add(imported)
    blocks: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for module in sorted(wanted):
        top = module.partition(".")[0]
        block = 2 if top == "minillm" else 0 if top in sys.stdlib_module_names else 1
        blocks[block] += [_import_line(module, wanted[module])]
    # `import x` stands before `from x import y`, as ruff sorts them.
    for lines in blocks.values():
        if lines:
            yield "\n".join(sorted(lines, key=lambda line: line.startswith("from")))


def _origin(module: str, name: str) -> tuple[str, str]:
    """The origin of `name`, used in `module`: (module, name to import) or ("", "")."""
    for node in _module(module)[0].body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, _as(alias)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return alias.name, f" as {alias.asname}" if alias.asname else ""
        elif name in _defined(node):
            return module, name
    return "", ""


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, Function | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return set()


def _as(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _import_line(module: str, names: set[str]) -> str:
    plain = [f"import {module}{name}" for name in sorted(names) if name == "" or name.startswith(" as ")]
    listed = sorted((n for n in names if n and not n.startswith(" as ")), key=_constants_first)
    if not listed:
        return "\n".join(plain)
    line = f"from {module} import {', '.join(listed)}"
    if len(line) > _WIDTH:
        line = "\n".join([f"from {module} import (", *(f"    {name}," for name in listed), ")"])
    return "\n".join([*plain, line])


def _constants_first(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)
