"""The state of block tables and their pool after an operation, as a value that can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.errors import MinillmError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable


def memory_state(pool: BlockPool, *tables: BlockTable) -> list[Any]:
    """Each table's blocks, the number of owners of every block, and the number of free blocks."""
    owners = [pool.ref_count(block) for block in range(pool.num_blocks)]
    return [[list(table.block_ids) for table in tables], owners, pool.num_free]


def error_name(action: Callable[[], Any]) -> str | None:
    """The name of the typed error that `action` raises."""
    try:
        action()
    except MinillmError as error:
        return type(error).__name__
    return None
