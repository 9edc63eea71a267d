"""What an eviction policy is, and the one of the engine: LRU.

    least recently used  [ 8 ][ 3 ][ 5 ][ 0 ]  most recently used
                           |         ^----------- a hit on 5 moves it to the right end
                           v
                         evicted when a new block needs room

Left out: sizes. All blocks are equal, so a cache is a number of blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Policy(Protocol):
    """A cache of block ids with a fixed capacity."""

    def __contains__(self, block: int, /) -> bool:
        """Whether the block is cached. Changes nothing."""

    def access(self, block: int) -> list[int]:
        """Use a block, and insert it if it is absent. Returns the blocks evicted for it."""


class LRU:
    """Evicts the block that was used least recently. `capacity`: blocks, at least one."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def access(self, block: int) -> list[int]:
        """As `Policy.access`; at most one block is evicted."""
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return []
        evicted = []
        if len(self._blocks) == self._capacity:
            evicted.append(self._blocks.popitem(last=False)[0])
        self._blocks[block] = None
        return evicted
