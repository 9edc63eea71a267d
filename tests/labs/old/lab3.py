"""Lab 3: The paged cache and the two loops.

Replace every `raise NotImplementedError(...)`; the docstrings say what is wanted. All else is the
engine's own. Each task is checked with the engine's own parts around it, so any order will do.

    minillm labs check 3        run the checks
    minillm labs hint 3.1       a hint; --level 2 and 3 say more

Made from the engine's source by `minillm labs start 3`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minillm.engine.prefill import Chunk
from minillm.model.runner import ModelRunner, SequenceRows
from torch import Tensor

from minillm.engine.request import Request
from minillm.memory.block_pool import BlockPool


def blocks_for(num_tokens: int, block_size: int) -> int:
    """How many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


def slot_mapping(block_table: Sequence[int], positions: Sequence[int], block_size: int) -> list[int]:
    """Slots of `positions` (logical token positions) of one sequence: `[len(positions)]`."""
    return [block_table[pos // block_size] * block_size + pos % block_size for pos in positions]


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
        self._pool.share(self.block_ids[:num_full])
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


def prefill(runner: ModelRunner, chunks: Sequence[Chunk]) -> Tensor:
    """Compute one chunk of each request and write its keys and values to the cache.

    Args:
        runner: runs the model over the paged cache.
        chunks: at most one for each request; `start` is the request's `num_computed_tokens`.

    Returns:
        Logits of each chunk's last token [len(chunks), vocab_size]: for a chunk that holds the newest
        token, the scores of the next.

    Raises:
        OutOfBlocks: the pool cannot hold the chunk; that request's table is unchanged.
    """
    batch = []
    for chunk in chunks:
        request = chunk.request
        request.block_table.grow(chunk.end)
        tokens = request.tokens(chunk.start, chunk.end)
        batch.append(SequenceRows(tokens, chunk.start, request.block_table.block_ids))
    logits = runner.last_logits(batch)
    for chunk in chunks:
        chunk.request.num_computed_tokens = chunk.end
    return logits


def decode(runner: ModelRunner, requests: Sequence[Request]) -> Tensor:
    """Run each request's newest token, whose key and value are not in the cache yet.

    Args:
        runner: runs the model over the paged cache.
        requests: past their prefill, each with at least one output token.

    Returns:
        Logits of the next token of each request [len(requests), vocab_size].

    Raises:
        OutOfBlocks: the pool cannot hold the token; that request's table is unchanged.
    """
    batch = []
    for request in requests:
        position = request.num_computed_tokens
        request.block_table.grow(position + 1)
        batch.append(SequenceRows(request.output_token_ids[-1:], position, request.block_table.block_ids))
    logits = runner.last_logits(batch)
    for request in requests:
        request.num_computed_tokens += 1
    return logits
