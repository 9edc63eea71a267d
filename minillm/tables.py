"""Tables for the terminal. Long words fold to the next line: a narrow terminal shows all of them.

rich cuts what does not fit and writes an ellipsis, so that names and figures cannot be read.
"""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table


def folding_table(*headers: str, **options: Any) -> Table:
    """A table with these columns; `options` are those of `rich.table.Table`."""
    return Table(*(Column(header, overflow="fold") for header in headers), **options)
