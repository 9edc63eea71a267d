"""Files that were written for an earlier version of a lab, recognised by names that only such files have.

Such a file would fail with an AttributeError or a missing import. One line says what the lab needs now.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from minillm.labs.grader.lab import Lab


def earlier_version(lab: Lab, text: str) -> str:
    """The message for a file that was written for an earlier version of `lab`; "" for any other file."""
    if lab.change is None:
        return ""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""  # loading the file reports this error
    found = min(((line, name) for line, name in _names(tree) if name in lab.change.old_names), default=None)
    if found is None:
        return ""
    start = f"minillm labs start {lab.number} --dir {lab.folder}_new"
    return (
        f"{lab.file} was written for an earlier version of lab {lab.number} (line {found[0]}: {found[1]}): "
        f"{lab.change.now}; `{start}` writes the new skeleton: copy your function bodies to it"
    )


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of everything in a file that can be in `Change.old_names`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, f"{node.module}"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, f".{node.attr}"
            if isinstance(node.value, ast.Attribute):
                yield node.lineno, f".{node.value.attr}.{node.attr}"
        elif isinstance(node, ast.FunctionDef):
            yield node.lineno, f"def {node.name}"
            yield from ((node.lineno, f"{node.name}({argument.arg})") for argument in node.args.args)
