"""S3-FIFO: three queues instead of one list, so that a block that is used once leaves early.

    new block --> [ small, 10 % ] --used twice or more after it came--> [ main, 90 % ] --not used--> evicted
                        |                                                  ^      |
                        | used less: evicted                               |      +-- used: back to the front,
                        v                                                  |          its count is one less
                  [ ghost: ids only ] --asked for again: a miss, and ------+

LRU lets every new block travel through the whole cache before it leaves, also one that nobody asks for again.
Here it leaves after a tenth of the cache. What was evicted too early is remembered in the ghost queue for as
long as the main queue would have kept it. A hit moves nothing: it adds one to a count of at most 3.

Paper: Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023), algorithm 1. The count is
cleared when a block moves to the main queue (section 4.1). Left out: locks, and the variants that came later.
"""

from __future__ import annotations

from collections import OrderedDict, deque

MAX_COUNT = 3
USED_OFTEN = 2  # hits in the small queue that take a block to the main queue


class S3FIFO:
    """Three FIFO queues: small, main and ghost. `capacity`: blocks, at least one."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small_size = max(1, capacity // 10)
        self._main_size = capacity - self._small_size
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._counts: dict[int, int] = {}  # of every cached block: hits since it came, at most MAX_COUNT

    def __contains__(self, block: int) -> bool:
        return block in self._counts

    def access(self, block: int) -> list[int]:
        """As `Policy.access`."""
        if block in self._counts:
            self._counts[block] = min(self._counts[block] + 1, MAX_COUNT)
            return []
        evicted: list[int] = []
        while len(self._counts) >= self._capacity:
            self._evict(evicted)
        if block in self._ghost:
            del self._ghost[block]
            self._main.append(block)
        else:
            self._small.append(block)
        self._counts[block] = 0
        return evicted

    def _evict(self, evicted: list[int]) -> None:
        if len(self._small) >= self._small_size:
            self._evict_from_small(evicted)
        else:
            self._evict_from_main(evicted)

    def _evict_from_small(self, evicted: list[int]) -> None:
        """Evict the oldest block that was not used often; those that were move to the main queue."""
        while self._small:
            block = self._small.popleft()
            if self._counts[block] < USED_OFTEN:
                self._remember(block)
                self._drop(block, evicted)
                return
            self._counts[block] = 0
            self._main.append(block)
            if len(self._main) > self._main_size:
                self._evict_from_main(evicted)

    def _evict_from_main(self, evicted: list[int]) -> None:
        """Evict the oldest block that was not used since it came here or was last spared."""
        while self._main:
            block = self._main.popleft()
            if self._counts[block] == 0:
                self._drop(block, evicted)
                return
            self._counts[block] -= 1
            self._main.append(block)

    def _drop(self, block: int, evicted: list[int]) -> None:
        del self._counts[block]
        evicted.append(block)

    def _remember(self, block: int) -> None:
        self._ghost[block] = None
        if len(self._ghost) > self._main_size:
            self._ghost.popitem(last=False)
