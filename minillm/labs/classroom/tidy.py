"""A lab's own modules without its known mistakes, which are nearly solutions.

The mistakes go from the tasks. Then everything goes that nothing needs any more: functions, classes,
constants, imports, modules.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from minillm.labs.classroom.strip import Edit, edited

_MISTAKES = 5  # index of the argument `mistakes` of Task
Names = dict[str, ast.stmt]


def tidied(package: str, sources: dict[str, str]) -> dict[str, str]:
    """The modules of a lab without mistakes and what only they need.

    Args:
        package: "minillm.labs.lab3_cache".
        sources: {module's name in the package: source}, with "lab" and "__init__".
    """
    sources = {**sources, "lab": _without_mistakes(sources["lab"])}
    modules = {name: _Module(package, source) for name, source in sources.items()}
    modules["lab"].need("LAB", modules)
    return {name: module.kept() for name, module in modules.items() if module.needed or name == "__init__"}


class _Module:
    """The top-level statements of a module by the names that they bind, and which of these are needed."""

    def __init__(self, package: str, source: str) -> None:
        self._package, self._lines, self._tree = package, source.splitlines(), ast.parse(source)
        self._bound: Names = {name: node for node in self._tree.body for name in _bound(node)}
        self.needed: set[str] = set()

    def need(self, name: str, modules: dict[str, _Module]) -> None:
        """Mark `name` and all that it needs, in this module and in others of the package."""
        node = self._bound.get(name)
        if node is None or name in self.needed:
            return
        self.needed.add(name)
        if isinstance(node, ast.ImportFrom):
            prefix, _, other = (node.module or "").rpartition(".")
            if node.module == self._package and name in modules:  # the whole module
                for bound in modules[name]._bound:
                    modules[name].need(bound, modules)
            elif prefix == self._package and other in modules:
                original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
                modules[other].need(original, modules)
                self._need_all(modules[other], modules)
            return
        for used in _used(node):
            self.need(used, modules)

    @staticmethod
    def _need_all(other: _Module, modules: dict[str, _Module]) -> None:
        """What a module does when it is imported, apart from its definitions."""
        for node in other._tree.body:
            if not set(_bound(node)):
                for used in _used(node):
                    other.need(used, modules)

    def kept(self) -> str:
        """The source of the needed statements."""
        edits: list[Edit] = []
        for node in self._tree.body:
            names = set(_bound(node))
            if getattr(node, "module", "") == "__future__" or not names:
                continue
            if not names & self.needed:
                edits.append((_first_line(node, self._lines), node.end_lineno or 0, []))
            elif isinstance(node, ast.Import | ast.ImportFrom) and names - self.needed:
                edits.append((node.lineno, node.end_lineno or 0, [_narrowed(node, self.needed)]))
        return edited(self._lines, edits)


def _without_mistakes(source: str) -> str:
    """The source of lab.py with no mistakes in its tasks."""
    raw = source.encode()
    offsets: list[int] = [0]
    for line in raw.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    cuts = []
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Task"):
            continue
        arguments: list[ast.expr] = [*call.args, *(keyword.value for keyword in call.keywords)]
        doomed = [*call.args[_MISTAKES:], *(k.value for k in call.keywords if k.arg in ("mistakes", "more"))]
        for argument in doomed:
            before = arguments[arguments.index(argument) - 1]
            cuts.append((_at(before, offsets), _at(argument, offsets)))
    for start, stop in sorted(cuts, reverse=True):
        raw = raw[:start] + raw[stop:]
    return raw.decode()


def _at(node: ast.expr, offsets: list[int]) -> int:
    """The offset of the end of `node`, in bytes."""
    return offsets[(node.end_lineno or 1) - 1] + (node.end_col_offset or 0)


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def _used(node: ast.AST, local: frozenset[str] = frozenset()) -> set[str]:
    """The names of the module that `node` uses. A function's own variables are not."""
    if isinstance(node, ast.Name):
        return {node.id} - local
    children = list(ast.iter_child_nodes(node))
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return {name for child in children for name in _used(child, local)}
    inside = node.body if isinstance(node.body, list) else [node.body]
    outside = [child for child in children if child not in inside]
    own = local | _variables(node.args, inside)
    return {name for child in outside for name in _used(child, local)} | {
        name for child in inside for name in _used(child, own)
    }


def _variables(arguments: ast.arguments, body: Sequence[ast.AST]) -> set[str]:
    """The names that a function binds itself, in no function inside it."""
    found = {argument.arg for argument in ast.walk(arguments) if isinstance(argument, ast.arg)}
    todo = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(node)
    return found


def _first_line(node: ast.stmt, lines: list[str]) -> int:
    """The first line of a statement with its decorators and the comment above it."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    while first > 1 and lines[first - 2].startswith("#"):
        first -= 1
    return first


def _narrowed(node: ast.Import | ast.ImportFrom, needed: set[str]) -> str:
    node.names = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in needed]
    return ast.unparse(node)
