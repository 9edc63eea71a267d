"""What the cases of lab 6 do with a prefix cache: sequences write blocks, search blocks, and free them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import CachedBlock, Scope, sha256

HOME = Scope("model")
FIRST, SECOND, OTHER = (1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9)  # token ids of a block
Chain = Sequence[tuple[int, ...]]
STORY: Chain = (FIRST, SECOND, OTHER)


class CacheUser:
    """A cache with a pool, and the actions of a sequence; a constant hash gives every key the same digest."""

    def __init__(self, cache_class: Any, num_blocks: int = 8, is_constant: bool = False) -> None:
        self.pool = BlockPool(num_blocks, 4)
        self.cache = cache_class(self.pool, (lambda data: b"same") if is_constant else sha256)

    def keys(self, scope: Scope, chain: Chain) -> list[tuple[bytes, Sequence[int]]]:
        """(digest, token ids) of each block."""
        keys, parent = list[tuple[bytes, Sequence[int]]](), None
        for ids in chain:
            parent = self.cache.digest(scope, parent, list(ids))
            keys.append((parent, list(ids)))
        return keys

    def write(self, chain: Chain, scope: Scope = HOME) -> list[CachedBlock]:
        """A sequence computes all blocks, publishes them, and still owns them."""
        blocks, parent = list[CachedBlock](), None
        for digest, ids in self.keys(scope, chain):
            (block_id,) = self.pool.allocate(1)
            parent = self.cache.publish(scope, parent, ids, digest, block_id)
            blocks.append(parent)
        return blocks

    def leave(self, *block_ids: int) -> None:
        """A sequence frees its blocks."""
        self.pool.free(block_ids)
        self.cache.released(block_ids)

    def find(self, chain: Chain, scope: Scope = HOME) -> list[int]:
        """The ids of the blocks that are found."""
        return [block.block_id for block in self.cache.match(scope, self.keys(scope, chain))]

    def state(self) -> list[Any]:
        """The state of the cache: findable blocks, unused blocks, owners of each block, free blocks."""
        owners = [self.pool.ref_count(block) for block in range(self.pool.num_blocks)]
        return [self.cache.num_blocks, self.cache.num_unused, owners, self.pool.num_free]
