"""The event `blocks`: whose each block of the pool is, told after every step as what has changed.

    block      0    1    2    3    4    5
    owner      a    a,b  b    -    c    cache          a and b share block 1; block 5 waits for a prefix hit

    tables     [("a", 0, [0, 1]), ("b", 0, [1, 2])]    the tables that changed: (request id, sample index, the
                                                       block ids in logical order); [] once it has ended
    cached     [5]        blocks that the prefix cache alone owns now, and did not before
    uncached   [3]        blocks that it alone owned before, and does not now

The blocks of public prefixes are the table of the request id "". They belong to no request.

Each step looks at every block of the pool, so nobody does this unless a run is recorded. The owners are
counted in the pool, not asked of a prefix cache: with tenant limits there are several, and a reader may have
replaced theirs. A block with an owner that is in no table is the cache's. Blocks of draft branches are gone
when a step ends.
"""

from __future__ import annotations

from collections.abc import Sequence as List

from minillm.engine.sequence import Sequence
from minillm.engine.tenant_memory import KVMemory
from minillm.observe.events import Events

PUBLIC = ("", 0)  # the key of the table of public prefixes


class BlockMap:
    """Emits `blocks`. Tables are told whole and sets as differences: to hear something twice does no harm."""

    def __init__(self, memory: KVMemory, events: Events) -> None:
        self._memory, self._events = memory, events
        self._tables: dict[tuple[str, int], list[int]] = {}
        self._cached: set[int] = set()

    def __call__(self, running: List[Sequence]) -> None:
        """Tell what has changed. `running`: the sequences that have blocks."""
        tables = {(s.request_id, s.index): list(s.block_table.block_ids) for s in running}
        tables[PUBLIC] = self._memory.public.block_ids
        tables = {key: ids for key, ids in tables.items() if ids}
        cached = self._owned() - {block for ids in tables.values() for block in ids}
        changed = [(*key, ids) for key, ids in tables.items() if self._tables.get(key) != ids]
        ended = [(*key, list[int]()) for key in self._tables if key not in tables]
        self._events.emit(
            "blocks",
            tables=ended + changed,
            cached=sorted(cached - self._cached),
            uncached=sorted(self._cached - cached),
        )
        self._tables, self._cached = tables, cached

    def _owned(self) -> set[int]:
        pool = self._memory.pool
        return {block for block in range(pool.num_blocks) if pool.ref_count(block)}
