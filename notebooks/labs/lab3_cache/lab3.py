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
    """The number of blocks that hold `num_tokens` tokens; the last one may be partly full.

    It is needed for every sequence in every step, so the work must not grow with the number of tokens. It may
    grow with the number of blocks.
    """
    # Stuck? minillm labs hint 3.1
    raise NotImplementedError("Lab 3.1 blocks_for; hint: minillm labs hint 3.1")


def slot_mapping(block_table: Sequence[int], positions: Sequence[int], block_size: int) -> list[int]:
    """The cache slots of `positions` (logical token positions) of one sequence: a new list, one slot each.

    The table may have more blocks than these positions need.

    Raises:
        IndexError: a position is negative, or the table has no block for it. Any slot is another token's.
    """
    # Stuck? minillm labs hint 3.2
    raise NotImplementedError("Lab 3.2 slot_mapping; hint: minillm labs hint 3.2")


def write_cache(cache: Tensor, slot_mapping: Tensor, rows: Tensor) -> None:
    """Write the new rows of K (or of V) to their slots of one layer's cache, in place: a scatter.

        slot_mapping  [ 9, 20, 3 ]          row 0 -> slot 9, row 1 -> slot 20, row 2 -> slot 3
        slot          block slot // block_size, place slot % block_size in that block

    Only these slots are written; the rest of the cache may be gigabytes and belongs to other sequences.

    Args:
        cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous.
        slot_mapping: int64 [num_tokens], all different.
        rows: [num_tokens, num_kv_heads, head_dim], perhaps in another dtype than the cache; the cache keeps
            its own.
    """
    # Stuck? minillm labs hint 3.3
    raise NotImplementedError("Lab 3.3 write_cache; hint: minillm labs hint 3.3")


def read_cache(cache: Tensor, block_table: Tensor, num_tokens: int) -> Tensor:
    """Read the rows of K (or of V) of one sequence from one layer's cache, in order: a gather.

        block_table   [ 5, 2, 7, 0, 0 ]     10 tokens in blocks of 4: all rows of blocks 5 and 2,
                                            then the first two rows of block 7

    Only the blocks that hold these tokens are read. The table may have more entries: blocks of later tokens,
    and zeros up to the length of the longest table in the batch.

    Args:
        cache: [num_blocks, block_size, num_kv_heads, head_dim].
        block_table: int32 [width], the sequence's block ids.
        num_tokens: the number of the sequence's tokens that are in the cache.

    Returns:
        A new tensor [num_tokens, num_kv_heads, head_dim] in the cache's dtype.
    """
    # Stuck? minillm labs hint 3.4
    raise NotImplementedError("Lab 3.4 read_cache; hint: minillm labs hint 3.4")


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
        # Stuck? minillm labs hint 3.5
        raise NotImplementedError("Lab 3.5 BlockTable.grow; hint: minillm labs hint 3.5")

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
        # Stuck? minillm labs hint 3.6
        raise NotImplementedError("Lab 3.6 BlockTable.fork; hint: minillm labs hint 3.6")

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

    The model runs once for all chunks, over their tokens only: earlier chunks are in the cache. The head,
    the largest matrix of a small model, runs only for each chunk's last token. A chunk has all that is
    needed; nothing is kept from step to step. The chunks are not changed.

    Args:
        runner: runs the model over the paged cache.
        chunks: at most one per sequence.

    Returns:
        The logits after each chunk's last token, in the order of `chunks`: a new tensor
        [len(chunks), vocab_size]. If a chunk ends with the newest token of its sequence, these are the
        logits of the next token.
    """
    # Stuck? minillm labs hint 3.7
    raise NotImplementedError("Lab 3.7 prefill; hint: minillm labs hint 3.7")


def decode(runner: ModelRunner, rows: Sequence[DecodeRow]) -> Tensor:
    """Run each sequence's newest token and write its key and value to the cache.

    The model runs once for all rows, over the newest tokens only: those before are in the cache. A row has
    all that is needed; nothing is kept from step to step. The rows are not changed.

    Args:
        runner: runs the model over the paged cache.
        rows: one per sequence; its block table has room for the token.

    Returns:
        The logits of each sequence's next token, in the order of `rows`: a new tensor
        [len(rows), vocab_size].
    """
    # Stuck? minillm labs hint 3.8
    raise NotImplementedError("Lab 3.8 decode; hint: minillm labs hint 3.8")
