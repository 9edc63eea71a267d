# ruff: noqa: F401 - imports that the finished file uses
"""Lab 3: The paged cache and the two loops.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 3        run the checks
    minillm labs hint 3.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 3`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minillm.memory.block_pool import BlockPool
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, PrefillChunk, SequenceRows


def blocks_for(num_tokens: int, block_size: int) -> int:
    """The number of blocks that hold `num_tokens` tokens."""
    # Stuck? minillm labs hint 3.1
    raise NotImplementedError("Lab 3.1 blocks_for; hint: minillm labs hint 3.1")


def slot_mapping(block_table: Sequence[int], positions: Sequence[int], block_size: int) -> list[int]:
    """The cache slots of `positions` (logical token positions) of one sequence: `[len(positions)]`."""
    # Stuck? minillm labs hint 3.2
    raise NotImplementedError("Lab 3.2 slot_mapping; hint: minillm labs hint 3.2")


class BlockTable:
    """The blocks of one sequence, in logical order."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.block_ids: list[int] = []

    def grow(self, num_tokens: int) -> None:
        """Allocate blocks until the table holds `num_tokens` tokens in all.

        Raises:
            OutOfBlocks: the pool has too few free blocks; the table is unchanged.
        """
        # Stuck? minillm labs hint 3.3
        raise NotImplementedError("Lab 3.3 BlockTable.grow; hint: minillm labs hint 3.3")

    def fork(self, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        """Make a second table over the same first `num_tokens` tokens.

        Full blocks are shared. A partly full last block will be written by both sequences, so the fork
        gets its own block, and the caller must copy the content.

        Returns:
            The fork, and `(source, destination)` of the block to copy, or None.

        Raises:
            OutOfBlocks: no block is free for the copy; nothing was shared.
        """
        # Stuck? minillm labs hint 3.4
        raise NotImplementedError("Lab 3.4 BlockTable.fork; hint: minillm labs hint 3.4")

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


def prefill(runner: ModelRunner, chunks: Sequence[PrefillChunk]) -> Tensor:
    """Compute one chunk of each sequence and write its keys and values to the cache.

    Args:
        runner: runs the model over the paged cache.
        chunks: at most one per sequence.

    Returns:
        The logits after each chunk's last token [len(chunks), vocab_size]. If a chunk ends with the newest
        token of its sequence, these are the logits of the next token.
    """
    # Stuck? minillm labs hint 3.5
    raise NotImplementedError("Lab 3.5 prefill; hint: minillm labs hint 3.5")


def decode(runner: ModelRunner, rows: Sequence[DecodeRow]) -> Tensor:
    """Run each sequence's newest token and write its key and value to the cache.

    Args:
        runner: runs the model over the paged cache.
        rows: one per sequence; its block table has room for the token.

    Returns:
        The logits of each sequence's next token [len(rows), vocab_size].
    """
    # Stuck? minillm labs hint 3.6
    raise NotImplementedError("Lab 3.6 decode; hint: minillm labs hint 3.6")
