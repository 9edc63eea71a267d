"""The engine's source without the parts of a lab: their bodies call the student's file.

    def add(a, b):                def add(a, b):
        '''The sum.'''     ->         '''The sum.'''
        return a + b                  return written("add")(a, b)

Helper functions of the parts become such calls too. A class gets `__getattr__`, so that a student's method,
run on an object of the engine's class, finds helpers that only the student's class has. Of the module's
docstring only the first line stays: the rest explains the parts.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from minillm.labs.grader.lab import Part

Function = ast.FunctionDef | ast.AsyncFunctionDef
Edit = tuple[int, int, list[str]]  # first line, last line (from 1), new lines

WRITTEN = '''"""The parts that the student writes, for the engine of this package."""

import inspect
import sys

# The check replaces functions and classes of the student's file while it judges another one.
_ORIGINALS, _TOP = {}, {}


def remember(*path):
    """Note the student's function or method, before anything is replaced."""
    if path not in _ORIGINALS and "student_lab" in sys.modules:
        try:
            _ORIGINALS[path] = _now(*path)
        except AttributeError:  # a helper that the student does not have
            pass


def written(*path):
    """The function or method of the student's file, such as ("BlockTable", "grow")."""
    if "student_lab" not in sys.modules:
        raise NotImplementedError(f"Lab: {'.'.join(path)} is in your file, which only `labs check` runs")
    return _ORIGINALS[path] if path in _ORIGINALS else _now(*path)


def from_student(instance, class_name, name):
    """What only the student's class has, bound to an instance of the engine's class."""
    if name.startswith("__") or "student_lab" not in sys.modules:
        raise AttributeError(name)
    found = inspect.getattr_static(_now(class_name), name)
    return found.__get__(instance, type(instance)) if hasattr(found, "__get__") else found


def _now(top, *rest):
    found = _TOP.setdefault(top, getattr(sys.modules["student_lab"], top))
    for name in rest:
        found = getattr(found, name)
    return found.fget if isinstance(found, property) else found
'''
_IMPORT = "from minillm.written import from_student, written"
_FALLBACK = """
    def __getattr__(self, name: str):
        return from_student(self, "{name}", name)"""


def stripped(source: str, parts: Sequence[Part]) -> str:
    """The source of a module without the bodies of `parts`, all of this module."""
    tree, lines = ast.parse(source), source.splitlines()
    nodes = _functions(tree)
    edits: list[Edit] = []
    for part in parts:
        owner = [part.name] if part.methods else []
        names = part.methods or (part.name,)
        edits += [_body(nodes[*owner, name], [*owner, name], lines) for name in names]
        edits += [_helper(nodes[*owner, name], [*owner, name]) for name in part.helpers]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(part.methods and part.name == node.name for part in parts):
            end = node.end_lineno or 0
            edits.append((end + 1, end, _FALLBACK.format(name=node.name).splitlines()))
    edits += [_docstring(tree), _import(tree)]
    return edited(lines, edits)


def without(source: str, names: Sequence[str]) -> str:
    """The source of a module whose functions `names` have no body."""
    tree, lines = ast.parse(source), source.splitlines()
    nodes, edits = _functions(tree), list[Edit]()
    for name in names:
        start, end, _ = _body(nodes[name,], [name], lines)
        edits.append((start, end, ['    raise NotImplementedError("not in a student package")']))
    return edited(lines, edits)


def _functions(tree: ast.Module) -> dict[tuple[str, ...], Function]:
    """Functions by (name,), methods by (class, name)."""
    found: dict[tuple[str, ...], Function] = {}
    for node in tree.body:
        if isinstance(node, Function):
            found[(node.name,)] = node
        elif isinstance(node, ast.ClassDef):
            found |= {(node.name, child.name): child for child in node.body if isinstance(child, Function)}
    return found


def edited(lines: list[str], edits: list[Edit]) -> str:
    """The lines with the edits, as a text."""
    lines = list(lines)
    for start, stop, new in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[start - 1 : stop] = new
    return "\n".join(lines) + "\n"


def _body(function: Function, path: list[str], lines: list[str]) -> Edit:
    """Replace a body by a call of the student's function; the docstring stays."""
    first, has_docstring = function.body[0], ast.get_docstring(function) is not None
    start = (first.end_lineno or 0) + 1 if has_docstring else first.lineno
    # What stands before the body on its line: spaces, or the head of a function of one line.
    before = " " * first.col_offset if has_docstring else lines[first.lineno - 1][: first.col_offset]
    names = ", ".join(f'"{name}"' for name in path)
    call = f"return written({names})({', '.join(_arguments(function))})"
    return start, function.end_lineno or 0, [before + call]


def _arguments(function: Function) -> list[str]:
    """The arguments of a call that passes everything on."""
    listed = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if function.args.vararg:
        listed.append(f"*{function.args.vararg.arg}")
    listed += [f"{argument.arg}={argument.arg}" for argument in function.args.kwonlyargs]
    if function.args.kwarg:
        listed.append(f"**{function.args.kwarg.arg}")
    return listed


def _helper(function: Function, path: list[str]) -> Edit:
    """Replace a helper, its signature too; decorators stay."""
    indent, names = " " * function.col_offset, ", ".join(f'"{name}"' for name in path)
    head = f"{indent}def {function.name}(*args, **kwargs):"
    return (
        function.lineno,
        function.end_lineno or 0,
        [head, f"{indent}    return written({names})(*args, **kwargs)"],
    )


def _docstring(tree: ast.Module) -> Edit:
    first_line = (ast.get_docstring(tree) or "").partition("\n")[0]
    return 1, tree.body[0].end_lineno or 0, [f'"""{first_line}"""']


def _import(tree: ast.Module) -> Edit:
    """The import of `written`, after the module's docstring and `__future__`."""
    last = max(
        node.end_lineno or 0
        for i, node in enumerate(tree.body)
        if (i == 0 and isinstance(node, ast.Expr)) or getattr(node, "module", "") == "__future__"
    )
    return last + 1, last, ["", _IMPORT]
