"""Address translation: from a token's position in its sequence to its slot in the cache.

    sequence (block_size 4)    position   0 1 2 3 | 4 5 6 7 | 8 9
    block table                           [ 5     ,   2     ,  7 ]
    slot = table[pos // 4] * 4 + pos % 4  20 . . 23  8 . . 11 28 29

The blocks of a sequence can lie anywhere in the cache; the block table gives their logical order.
Only the last block can be partly empty, so at most block_size - 1 slots are wasted.
"""

from __future__ import annotations

from collections.abc import Sequence

from minillm.memory.block_pool import BlockPool


def slot_mapping(block_table: Sequence[int], positions: Sequence[int], block_size: int) -> list[int]:
    """The cache slots of `positions` (logical token positions) of one sequence: a new list, one slot each.

    The table may have more blocks than these positions need.

    Raises:
        IndexError: a position is negative, or the table has no block for it. Any slot is another token's.
    """
    if min(positions, default=0) < 0:  # Python would count from the end of the table
        raise IndexError("a position is negative")
    return [block_table[pos // block_size] * block_size + pos % block_size for pos in positions]


def blocks_for(num_tokens: int, block_size: int) -> int:
    """The number of blocks that hold `num_tokens` tokens; the last one may be partly full.

    It is needed for every sequence in every step, so the work must not grow with the number of tokens. It may
    grow with the number of blocks.
    """
    return -(-num_tokens // block_size)


class BlockTable:
    """The blocks of one sequence, in logical order."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.block_ids: list[int] = []

    def grow(self, num_tokens: int) -> None:
        """Allocate blocks until the table holds `num_tokens` tokens in all, but no more blocks than needed.

        The blocks that the table has stay in it, in their order: they hold keys and values. A table that
        holds enough, or more, does not change. Others change `block_ids` too: a sequence may start with
        blocks of the prefix cache, and `truncate` frees the last ones.

        Raises:
            OutOfBlocks: the pool has too few free blocks; the table is unchanged.
        """
        missing = blocks_for(num_tokens, self._pool.block_size) - len(self.block_ids)
        if missing > 0:
            self.block_ids += self._pool.allocate(missing)

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        """Make a second table over the same first `num_tokens` tokens; this table may hold more.

        Full blocks are shared: the pool counts the fork as another owner. A partly full last block will be
        written by both sequences, so the fork gets its own block, and the caller must copy the content.
        This table does not change, now or when the fork grows.

        Returns:
            The fork, and `(source, destination)` of the block to copy, or None.

        Raises:
            OutOfBlocks: no block is free for the copy; nothing was shared.
        """
        num_full, rest = divmod(num_tokens, self._pool.block_size)
        child = BlockTable(self._pool)
        own = self._pool.allocate(1) if rest else []
        try:
            self._pool.share(self.block_ids[:num_full])
        except Exception:
            self._pool.free(own)
            raise
        child.block_ids = self.block_ids[:num_full] + own
        return child, ((self.block_ids[num_full], own[0]) if own else None)

    def truncate(self, num_tokens: int) -> int:
        """Free the blocks after the first `num_tokens` tokens; return their number.

        A block that still holds one of these tokens stays. The table is one owner of a freed block; there may
        be others. A table that is already shorter does not change.
        """
        keep = blocks_for(num_tokens, self._pool.block_size)
        behind = self.block_ids[keep:]
        self.block_ids = self.block_ids[:keep]
        self._pool.free(behind)
        return len(behind)

    def branch(self, start: int, num_tokens: int) -> list[int]:
        """Allocate blocks for a branch: another continuation of this sequence from position `start` on.

            table     [ 5 ][ 2 ][ 7 ][ 9 ]        `start` is in block 7: from there on the branch has its
            branch    [ 5 ][ 2 ][ 4 ][ 1 ]        own blocks (the caller must copy block 7 to block 4)

        Returns:
            The branch's own block ids, for tokens `start` to `num_tokens`; the table is unchanged.

        Raises:
            OutOfBlocks: the pool has too few free blocks.
        """
        size = self._pool.block_size
        return self._pool.allocate(blocks_for(num_tokens, size) - start // size)

    def adopt(self, start: int, own: list[int]) -> list[int]:
        """Replace the blocks from position `start` on by a branch's `own` blocks; return the old ones.

        The block of position `start` is replaced too. The caller frees the old blocks, and keeps its list.
        """
        shared = start // self._pool.block_size
        before, self.block_ids = self.block_ids[shared:], self.block_ids[:shared] + own
        return before

    def release(self) -> None:
        """Free every block."""
        self._pool.free(self.block_ids)
        self.block_ids = []
