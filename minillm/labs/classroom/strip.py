"""The engine's source without the parts of a lab: their bodies call the student's file.

    def blocks_for(num_tokens, block_size):           def blocks_for(num_tokens, block_size):
        '''The number of blocks ...'''       ->          '''The number of blocks ...'''
        return -(-num_tokens // block_size)               return written("blocks_for")(num_tokens, block_size)

Helper functions of the parts go. A class gets `__getattr__`, so that a method of the engine's class finds
helpers that only the student's class has.
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


def written(*path):
    """The function or method of the student's file, such as ("BlockTable", "grow")."""
    found = sys.modules.get("student_lab")
    if found is None:
        raise NotImplementedError(f"Lab: {'.'.join(path)} is in your file, which only `labs check` runs")
    for name in path:
        found = getattr(found, name)
    return found


def from_student(instance, class_name, name):
    """What only the student's class has, bound to an instance of the engine's class."""
    if name.startswith("__") or "student_lab" not in sys.modules:
        raise AttributeError(name)
    found = inspect.getattr_static(written(class_name), name)
    return found.__get__(instance, type(instance)) if hasattr(found, "__get__") else found
'''
_IMPORT = "from minillm.written import from_student, written"
_FALLBACK = """
    def __getattr__(self, name: str):
        return from_student(self, "{name}", name)"""


def stripped(source: str, parts: Sequence[Part]) -> str:
    """The source of a module without the bodies of `parts`, all of this module."""
    tree, lines = ast.parse(source), source.splitlines()
    nodes = {n.name: n for n in tree.body if isinstance(n, Function | ast.ClassDef)}
    edits: list[Edit] = []
    for part in parts:
        node = nodes[part.name]
        if isinstance(node, ast.ClassDef):
            methods = {child.name: child for child in node.body if isinstance(child, Function)}
            edits += [_body(methods[name], [part.name, name]) for name in part.methods]
            edits += [_removed(methods[name]) for name in part.helpers]
        else:
            edits.append(_body(node, [part.name]))
            edits += [_removed(nodes[name]) for name in part.helpers]
    for name in {part.name for part in parts if part.methods}:
        end = nodes[name].end_lineno or 0
        edits.append((end + 1, end, _FALLBACK.format(name=name).splitlines()))
    edits.append(_import(tree))
    return edited(lines, edits)


def edited(lines: list[str], edits: list[Edit]) -> str:
    """The lines with the edits, as a text."""
    lines = list(lines)
    for start, stop, new in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[start - 1 : stop] = new
    return "\n".join(lines) + "\n"


def _body(function: Function, path: list[str]) -> Edit:
    """Replace a body by a call of the student's function; keep the docstring, drop comments."""
    has_docstring = ast.get_docstring(function) is not None
    first = function.body[0]
    if not has_docstring:
        start = max([function.lineno, *(node.end_lineno or 0 for node in _signature(function))]) + 1
        start = min(start, first.lineno)
    else:
        start = (first.end_lineno or 0) + 1
    names = ", ".join(f'"{name}"' for name in path)
    call = f"return written({names})({', '.join(_arguments(function))})"
    return start, function.end_lineno or 0, [" " * first.col_offset + call]


def _signature(function: Function) -> list[ast.expr | ast.arg]:
    arguments = function.args
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *arguments.defaults]
    return [*listed, *([function.returns] if function.returns else [])]


def _arguments(function: Function) -> list[str]:
    """The arguments of a call that passes everything on."""
    listed = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if function.args.vararg:
        listed.append(f"*{function.args.vararg.arg}")
    listed += [f"{argument.arg}={argument.arg}" for argument in function.args.kwonlyargs]
    if function.args.kwarg:
        listed.append(f"**{function.args.kwarg.arg}")
    return listed


def _removed(node: Function) -> Edit:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first, node.end_lineno or 0, []


def _import(tree: ast.Module) -> Edit:
    """The import of `written`, after the module's docstring and `__future__`."""
    last = max(
        node.end_lineno or 0
        for i, node in enumerate(tree.body)
        if (i == 0 and isinstance(node, ast.Expr)) or getattr(node, "module", "") == "__future__"
    )
    return last + 1, last, ["", _IMPORT]
