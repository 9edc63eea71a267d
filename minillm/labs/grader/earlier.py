"""Files that were written for an earlier version of a lab: known by names that only those have.

Such a file would fail somewhere inside, with an AttributeError or an import that is gone. It is told in one
line what is asked for now.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from minillm.labs.grader.lab import Lab


def earlier_version(lab: Lab, text: str) -> str:
    """What to tell a file that was written for an earlier version of `lab`; "" if it was not."""
    if lab.change is None:
        return ""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""  # loading it says why
    found = min(((line, name) for line, name in _names(tree) if name in lab.change.old_names), default=None)
    if found is None:
        return ""
    start = f"minillm labs start {lab.number} --dir {lab.folder}_new"
    return (
        f"{lab.file} was written for an earlier version of lab {lab.number} (line {found[0]}: {found[1]}): "
        f"{lab.change.now}; `{start}` writes the new skeleton: move your bodies over"
    )


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of everything in a file that `Change.old_names` can hold."""
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
