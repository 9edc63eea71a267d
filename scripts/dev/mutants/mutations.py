"""Mutants: sources with one small fault on one line, made from the syntax tree, drawn by a seed.

    if depth > 0 and not excluded:     >  -> >=     0 -> 1     and -> or     not x -> x     if c -> if not (c)

Only the text of the mutated node changes, so every other line keeps its number and its content. Left out is
what cannot change behaviour or only changes words: annotations, decorators, imports, docstrings, messages of
exceptions, f-strings, and `strict=` of zip.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BINARY = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
}
_COMPARE = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
_CALLED = {"min": "max", "max": "min", "sorted": "list", "reversed": "list", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in line `line` of `file`; both are whole lines without their ends.

    `statement` is the first line of the statement around it. `is_top` says that the line runs when the module
    is imported, not when a function is called.
    """

    file: str
    line: int
    old: str
    new: str
    statement: int
    is_top: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """(file, old, new) without indentation and comments: what reasons are looked up by."""
        return self.file, code_of(self.old), code_of(self.new)

    def apply(self, root: Path) -> str:
        """The mutated source; `root` holds the original."""
        lines = (root / self.file).read_text(encoding="utf-8").split("\n")
        if lines[self.line - 1] != self.old:
            raise ValueError(f"{self.file}:{self.line} is not {self.old!r} any more")
        lines[self.line - 1] = self.new
        return "\n".join(lines)


def code_of(line: str) -> str:
    """A line without its indentation and the comment at its end."""
    return line.partition("  # ")[0].strip()


def draw(root: Path, files: list[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants (or as many as there are) on different lines, each line as likely as any other."""
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for file in sorted(files):
        for mutant in mutants_of(root, file):
            by_line.setdefault((mutant.file, mutant.line), []).append(mutant)
    rng = random.Random(seed)
    lines = sorted(by_line)
    return [rng.choice(by_line[line]) for line in sorted(rng.sample(lines, min(count, len(lines))))]


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """Every mutant of a file, by line; no two with the same text."""
    source = (root / file).read_text(encoding="utf-8")
    lines = source.split("\n")
    found: dict[tuple[int, str], Mutant] = {}
    for edit in _Edits(source).of_module():
        old = lines[edit.line - 1]
        raw = old.encode()
        new = (raw[: edit.start] + edit.text.encode() + raw[edit.end :]).decode()
        mutant = Mutant(file, edit.line, old, new, edit.statement, edit.is_top)
        if new != old:
            found[edit.line, new] = mutant
    return [found[key] for key in sorted(found)]


@dataclass(frozen=True)
class _Edit:
    """Bytes `start` to `end` of a line become `text`."""

    line: int
    start: int
    end: int
    text: str
    statement: int
    is_top: bool


class _Edits:
    """Walks a module. Positions of the syntax tree are bytes of UTF-8 in a line."""

    def __init__(self, source: str) -> None:
        self._tree = ast.parse(source)
        self._lines = [line.encode() for line in source.split("\n")]

    def of_module(self) -> Iterator[_Edit]:
        for statement in self._tree.body:
            yield from self._of_statement(statement, is_top=True)

    def _of_statement(self, node: ast.stmt, is_top: bool) -> Iterator[_Edit]:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert) or _is_docstring(node):
            return
        if is_function or isinstance(node, ast.ClassDef):
            parts = [*node.args.defaults, *(d for d in node.args.kw_defaults if d)] if is_function else []
        else:
            parts = _expressions(node)
        made = [edit for part in parts for edit in self._of_expression(part)]
        if not isinstance(node, ast.Raise):
            made += self._whole(node)
        for line, start, end, text in made:
            yield _Edit(line, start, end, text, node.lineno, is_top)
        for inner in _inner_statements(node):
            yield from self._of_statement(inner, is_top and not is_function)

    def _whole(self, node: ast.stmt) -> Iterator[tuple[int, int, int, str]]:
        """The statement left out, its value forgotten, or its condition turned round."""
        if isinstance(node, ast.If):
            yield from self._replace(node.test, f"not ({self._text(node.test)})")
        elif isinstance(node, ast.Return):
            if node.value is None:
                yield from self._replace(node, "pass")
            elif not (isinstance(node.value, ast.Constant) and node.value.value is None):
                yield from self._replace(node.value, "None")
        elif (
            isinstance(node, ast.Continue | ast.Break | ast.Delete | ast.AugAssign)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
            or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript))
        ):
            yield from self._replace(node, "pass")
        if isinstance(node, ast.AugAssign) and type(node.op) in _BINARY:
            old, new = _BINARY[type(node.op)]
            yield from self._between(node.target, node.value, re.escape(old) + "=", new + "=")

    def _of_expression(self, node: ast.AST) -> Iterator[tuple[int, int, int, str]]:
        if isinstance(node, ast.JoinedStr):
            return
        yield from self._of_node(node)
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.keyword) and child.arg == "strict"):
                yield from self._of_expression(child)

    def _of_node(self, node: ast.AST) -> Iterator[tuple[int, int, int, str]]:
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
                yield from self._between(left, right, *_COMPARE[type(op)])
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from self._between(left, right, old, new)
        elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY and not _is_text(node):
            old, new = _BINARY[type(node.op)]
            yield from self._between(node.left, node.right, re.escape(old), new)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield from self._replace(node, f"({self._text(node.operand)})")
        elif isinstance(node, ast.IfExp):
            yield from self._replace(node.test, f"not ({self._text(node.test)})")
        elif isinstance(node, ast.Constant):
            yield from self._of_constant(node)
        elif isinstance(node, ast.Call):
            yield from self._of_call(node)

    def _of_constant(self, node: ast.Constant) -> Iterator[tuple[int, int, int, str]]:
        if isinstance(node.value, bool):
            yield from self._replace(node, str(not node.value))
        elif isinstance(node.value, int | float):
            yield from self._replace(node, f"{node.value + 1}")
            if node.value >= 1:
                yield from self._replace(node, f"{node.value - 1}")

    def _of_call(self, node: ast.Call) -> Iterator[tuple[int, int, int, str]]:
        if isinstance(node.func, ast.Name) and node.func.id in _CALLED:
            new = _CALLED[node.func.id]
            if new == "list" and node.args:
                yield from self._replace(node, f"list({self._text(node.args[0])})")
            elif new != "list":
                yield from self._replace(node.func, new)
        for a, b in zip(node.args, node.args[1:], strict=False):
            if type(a) is type(b) and isinstance(a, ast.Name | ast.Attribute) and a.lineno == b.end_lineno:
                between = self._lines[a.lineno - 1][a.end_col_offset : b.col_offset].decode()
                text = self._text(b) + between + self._text(a)
                yield a.lineno, a.col_offset, b.end_col_offset or 0, text

    def _between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator:
        """The operator `old` between two operands, where all is on one line."""
        if left.end_lineno != right.lineno:
            return
        start = left.end_col_offset or 0
        text = self._lines[right.lineno - 1][start : right.col_offset].decode()
        match = re.search(old, text)
        if match:
            yield right.lineno, start + match.start(), start + match.end(), new

    def _replace(self, node: ast.expr | ast.stmt, text: str) -> Iterator[tuple[int, int, int, str]]:
        if node.lineno == node.end_lineno:
            yield node.lineno, node.col_offset, node.end_col_offset or 0, text

    def _text(self, node: ast.expr) -> str:
        if node.lineno != node.end_lineno:
            return ""  # not used: what stands on several lines is not replaced
        return self._lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode()


def _expressions(node: ast.stmt) -> list[ast.AST]:
    """What a statement computes itself, without annotations, decorators and messages."""
    if isinstance(node, ast.Raise):
        return []
    if isinstance(node, ast.AnnAssign):
        return [node.value] if node.value else []
    skipped = (ast.stmt, ast.ExceptHandler, ast.match_case, ast.expr_context)
    return [child for child in ast.iter_child_nodes(node) if not isinstance(child, skipped)]


def _inner_statements(node: ast.stmt) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from child.body


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_text(node: ast.BinOp) -> bool:
    """Whether one side is text or a list: an operator that is not defined for them says so at once."""
    kinds = ast.JoinedStr | ast.List | ast.Tuple | ast.Set
    return any(
        isinstance(side, kinds) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )
