# ruff: noqa: F401 - imports that the finished file uses
"""Lab 6: A prefix cache that proves its hits.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 6        run the checks
    minillm labs hint 6.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 6`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import SCHEMA, CachedBlock, HashFunction, Scope, sha256


def encode(*fields: str | bytes | int | Sequence[int] | None) -> bytes:
    """Encode fields as bytes, each with its type and its length, so that different fields never collide.

    A list and a tuple of the same ids are equal fields, and equal fields have equal bytes in every run. From
    the bytes the fields could be decoded again, so a hash is no encoding. Ids go up to 2**31.
    """
    # Stuck? minillm labs hint 6.1
    raise NotImplementedError("Lab 6.1 encode; hint: minillm labs hint 6.1")


class PrefixCache:
    """Full blocks by content; it owns one reference to each. `publish` adds a block, `match` finds blocks."""

    def __init__(self, pool: BlockPool, hash_function: HashFunction = sha256) -> None:
        self._pool, self._hash = pool, hash_function
        self._index: dict[bytes, list[CachedBlock]] = {}  # digest -> all cached blocks that have it
        self._by_block: dict[int, CachedBlock] = {}  # block id -> block
        self._unused: OrderedDict[int, CachedBlock] = OrderedDict()  # the least recently used first
        self.false_matches = 0  # candidates with the right digest but a different key

    @property
    def num_blocks(self) -> int:
        """Blocks in the cache."""
        return len(self._by_block)

    @property
    def num_unused(self) -> int:
        """Blocks that only the cache owns: they can be evicted."""
        return len(self._unused)

    def num_unused_of(self, tenant: str | None) -> int:
        """Unused blocks of one tenant. Looks at all of them."""
        return sum(block.scope.tenant == tenant for block in self._unused.values())

    def digest(self, scope: Scope, parent: bytes | None, token_ids: Sequence[int]) -> bytes:
        """The digest of the block with `token_ids` that follows the block with digest `parent`.

        The key consists of SCHEMA (the version of the format), every field of the scope, the parent (None
        for a first block) and the ids. It is encoded and hashed with the cache's own hash function.
        """
        # Stuck? minillm labs hint 6.2
        raise NotImplementedError("Lab 6.2 PrefixCache.digest; hint: minillm labs hint 6.2")

    def match(self, scope: Scope, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> list[CachedBlock]:
        """Find the longest chain of cached blocks with these (digest, token ids). No owner is added.

        A block is searched with the block before it as its parent. The search ends at the first block that
        is not found. The ids may be in any sequence; those of cached blocks are tuples.
        """
        # Stuck? minillm labs hint 6.4
        raise NotImplementedError("Lab 6.4 PrefixCache.match; hint: minillm labs hint 6.4")

    def acquire(self, blocks: Sequence[CachedBlock]) -> list[int]:
        """Make the caller an owner of matched blocks; return their ids."""
        ids = [block.block_id for block in blocks]
        self._pool.share(ids)
        for block_id in ids:
            self._unused.pop(block_id, None)
        return ids

    def is_unused(self, block: CachedBlock) -> bool:
        """Whether only the cache owns the block."""
        return block.block_id in self._unused

    def publish(
        self, scope: Scope, parent: CachedBlock | None, token_ids: Sequence[int], digest: bytes, block_id: int
    ) -> CachedBlock:
        """Add a written, full block to the cache.

        The cache becomes an owner of the block, and finds it in `_by_block` and in its digest's list in
        `_index`, beside other blocks with that digest. It keeps the ids in a tuple: the caller's list may
        change. If the same content is already cached, nothing is added.

        Returns:
            The block the caller must use from now on. If the same content is already cached, this is the
            older copy: the caller must acquire it and free its own.
        """
        # Stuck? minillm labs hint 6.5
        raise NotImplementedError("Lab 6.5 PrefixCache.publish; hint: minillm labs hint 6.5")

    def released(self, block_ids: Sequence[int]) -> None:
        """Called after a sequence has freed `block_ids`: blocks that only the cache owns become unused.

        The last block of the list becomes unused first, so it is evicted first, and never after its parent.
        Blocks that are not in the cache are left alone. `block_ids` is the caller's and does not change.
        """
        # Stuck? minillm labs hint 6.6
        raise NotImplementedError("Lab 6.6 PrefixCache.released; hint: minillm labs hint 6.6")

    def evict(self, count: int) -> int:
        """Free up to `count` unused blocks, the least recently used first; return the number freed.

        An evicted block is in no collection any more, and its digest's list is removed when it is empty.
        """
        # Stuck? minillm labs hint 6.7
        raise NotImplementedError("Lab 6.7 PrefixCache.evict; hint: minillm labs hint 6.7")

    def _find(
        self, digest: bytes, scope: Scope, parent: CachedBlock | None, token_ids: tuple[int, ...]
    ) -> CachedBlock | None:
        """Find the block with exactly this key: equal scope, equal token ids, and the same parent object.

        Any other block with the digest that is looked at on the way is counted in `false_matches`.
        """
        # Stuck? minillm labs hint 6.3
        raise NotImplementedError("Lab 6.3 PrefixCache._find; hint: minillm labs hint 6.3")
