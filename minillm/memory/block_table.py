"""From a token's position in its sequence to its slot in the cache: address translation.

    sequence (block_size 4)    position   0 1 2 3 | 4 5 6 7 | 8 9
    block table                           [ 5     ,   2     ,  7 ]
    slot = table[pos // 4] * 4 + pos % 4  20 . . 23  8 . . 11 28 29

A sequence's keys and values lie anywhere in the cache; the table is what makes them a sequence
again. Only the last block can be partly empty, so at most block_size - 1 slots are wasted.
"""

from __future__ import annotations

from collections.abc import Sequence

from minillm.memory.block_pool import BlockPool


def slot_mapping(block_table: Sequence[int], positions: Sequence[int], block_size: int) -> list[int]:
    """Slots of `positions` (logical token positions) of one sequence: `[len(positions)]`."""
    return [block_table[pos // block_size] * block_size + pos % block_size for pos in positions]


def blocks_for(num_tokens: int, block_size: int) -> int:
    """How many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockTable:
    """The blocks of one sequence, in logical order."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.block_ids: list[int] = []

    def grow(self, num_tokens: int) -> None:
        """Own enough blocks for `num_tokens` tokens in all.

        Raises:
            OutOfBlocks: the pool cannot give what is missing; the table is unchanged.
        """
        missing = blocks_for(num_tokens, self._pool.block_size) - len(self.block_ids)
        if missing > 0:
            self.block_ids += self._pool.allocate(missing)

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        """A second table over the same first `num_tokens` tokens.

        Full blocks are shared. A last block that is partly full will be written by both, so the
        fork gets one of its own: returned as `(source, destination)` for the caller to copy.

        Raises:
            OutOfBlocks: no block for the copy; nothing was shared.
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
        """Give back the blocks behind the first `num_tokens` tokens; returns how many."""
        keep = blocks_for(num_tokens, self._pool.block_size)
        behind = self.block_ids[keep:]
        self.block_ids = self.block_ids[:keep]
        self._pool.free(behind)
        return len(behind)

    def branch(self, start: int, num_tokens: int) -> list[int]:
        """Blocks of another future of this sequence, which parts from it at position `start`.

            table     [ 5 ][ 2 ][ 7 ][ 9 ]        start lies in block 7: the branch has its own from there
            branch    [ 5 ][ 2 ][ 4 ][ 1 ]        on (4 must be given what 7 holds up to `start`)

        Returns:
            Its own block ids, for tokens `start` to `num_tokens`; the table is unchanged.

        Raises:
            OutOfBlocks: the pool cannot give them.
        """
        size = self._pool.block_size
        return self._pool.allocate(blocks_for(num_tokens, size) - start // size)

    def adopt(self, start: int, own: list[int]) -> list[int]:
        """Let the branch that parts at `start` be the sequence; returns the blocks of the other future."""
        shared = start // self._pool.block_size
        before, self.block_ids = self.block_ids[shared:], self.block_ids[:shared] + own
        return before

    def release(self) -> None:
        """Give every block back to the pool."""
        self._pool.free(self.block_ids)
        self.block_ids = []
