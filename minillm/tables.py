"""Tables for the terminal. Long words fold to the next line: a narrow terminal shows all of them.

rich cuts what does not fit and writes an ellipsis, so that names and figures cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table


def folding_table(*headers: str, **options: Any) -> Table:
    """A table with these columns; `options` are those of `rich.table.Table`."""
    return Table(*(Column(header, overflow="fold") for header in headers), **options)


def figures_table(title: str, columns: Sequence[str]) -> Table:
    """A table of figures: the first column has names, the others are right-justified."""
    justified = [
        Column(c, justify="left" if i == 0 else "right", overflow="fold") for i, c in enumerate(columns)
    ]
    return Table(*justified, title=title)
