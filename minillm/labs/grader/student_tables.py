"""A student's block tables in the engine. They are not an engine part, so a scheduler sets them."""

from __future__ import annotations

from typing import Any

from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler


def scheduler_with(table_class: Any) -> type[Scheduler]:
    """The engine's scheduler; sequences keep their blocks in tables of `table_class`."""

    class WithTables(Scheduler):
        def add(self, request: Request) -> None:
            for sequence in request.sequences:
                sequence.block_table = table_class(self._memory.pool)
            super().add(request)

    return WithTables
