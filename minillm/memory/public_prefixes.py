"""Public prefixes: beginnings of prompts that every tenant may share, such as a common system prompt.

The prefix cache is private to a tenant, because a hit tells that somebody has sent this text before. But a
system prompt is known to all. Without sharing, 256 tenants with the same one prefill it 256 times and keep
256 copies. So the engine's owner, never a request, names the texts that are public:

    public     [ b0 ][ b1 ][ b2 ]                   prefilled once, pinned, charged to nobody
                        |     `-- tenant A's blocks    A's tree: conditioning "public 2"
                        `-------- tenant B's blocks    B's tree: conditioning "public 1"

A tenant's own blocks that follow public ones are in the tenant's own tree of the prefix cache. The
conditioning of its scope names the public block they follow, so the key is still the whole chain (contract
C5). Whether a public block is found depends on the prompt only, never on what anybody has sent.

Only full blocks are shared. A block is found by comparing its token ids, not by a digest.
"""

from __future__ import annotations

from collections.abc import Sequence

from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import CachedBlock, Scope

_SCOPE = Scope("public")


class PublicPrefixes:
    """The full blocks of all public prefixes, as a tree. Two prefixes with a common beginning share it.

    Args:
        prefixes: the token ids of each, and the row of longrope's tables that its position 0 reads.
    """

    def __init__(self, prefixes: Sequence[tuple[Sequence[int], int]], block_size: int) -> None:
        self.prefixes, self.block_size = prefixes, block_size
        self._next: dict[tuple[CachedBlock | int, tuple[int, ...]], CachedBlock] = {}
        self._numbers: dict[CachedBlock, int] = {}
        self._pool: BlockPool | None = None  # the pool that the blocks are in
        self.num_blocks = self._count()  # of all prefixes, filled or not; every request asks for it

    def _count(self) -> int:
        """The blocks of the tree: a common beginning counts once."""
        known: dict[tuple[int, tuple[int, ...]], int] = {}  # (block before, ids) -> number of the block
        for ids, offset in self.prefixes:
            last = -1 - offset  # no block has a negative number
            for end in range(self.block_size, len(ids) + 1, self.block_size):
                last = known.setdefault((last, tuple(ids[end - self.block_size : end])), len(known))
        return len(known)

    @property
    def block_ids(self) -> list[int]:
        """The blocks that are filled, in the order in which they were added."""
        return [block.block_id for block in self._numbers]

    def is_in(self, pool: BlockPool) -> bool:
        """Whether the prefixes have been filled in this pool. After a failed step there may be a new one."""
        return self._pool is pool or not self.prefixes

    def forget(self, pool: BlockPool) -> None:
        """Start with no block in `pool`."""
        self._next.clear()
        self._numbers.clear()
        self._pool = pool

    def match(self, token_ids: Sequence[int], rope_offset: int) -> list[CachedBlock]:
        """The longest chain of public blocks at the beginning of `token_ids`."""
        chain: list[CachedBlock] = []
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            ids = tuple(token_ids[start : start + self.block_size])
            block = self._next.get((chain[-1] if chain else rope_offset, ids))
            if block is None:
                break
            chain.append(block)
        return chain

    def add(self, parent: CachedBlock | int, token_ids: Sequence[int], block_id: int) -> CachedBlock:
        """Add a filled block after `parent`; for a first block `parent` is the rope offset.

        The caller has allocated the block and never frees it.
        """
        before = parent if isinstance(parent, CachedBlock) else None
        block = CachedBlock(block_id, _SCOPE, before, tuple(token_ids), b"")
        self._next[parent, block.token_ids] = block
        self._numbers[block] = len(self._numbers)
        return block

    @staticmethod
    def owns(block: object) -> bool:
        """Whether a block is a public one."""
        return isinstance(block, CachedBlock) and block.scope is _SCOPE

    def number(self, chain: Sequence[CachedBlock]) -> int | None:
        """The number of the last public block of a chain, which the scope of blocks after it names."""
        return self._numbers[chain[-1]] if chain else None
