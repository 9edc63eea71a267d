# ruff: noqa: F401 - imports that the finished file uses
"""Lab 9: Speculative decoding: verify, keep, roll back.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 9        run the checks
    minillm labs hint 9.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 9`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import blocks_for
from minillm.speculation.ngram import LONGEST, PLACES, SHORTEST


def verify_coupled(
    sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Walk down each request's tree of drafts while a child equals the token sampled from the target.

                      0 newest          parents  -1  0  1  0  3      a chain has parents -1 0 1 2 ..
                     /        \\
                1 once        3 there   sampled at 0: "there", at 3: "was", at 4: "a"
                  |             |
                2 upon        4 was     walk: 0, 3, 4; tokens: there, was, a

    Args:
        sampled: int64 [num_nodes], the token sampled from the target after each node.
        drafted: int64 [num_nodes], the token at each node; that of a request's first node is not used.
        parents: int64 [num_nodes], the parent's index within the request, smaller than the node's own index.
        node_start: int64 [num_requests + 1], from 0 to num_nodes; request i has the nodes start[i] to
            start[i + 1], and may have none.

    Returns:
        tokens, nodes: int64 [num_nodes]. From node_start[i] on: the tokens that request i emits, and for
        each the node (index within the request) after which it was sampled; padded with -1. A request emits
        one token more than it accepted drafts. If several children match, the first one is taken. Both are
        new tensors; the arguments do not change.
    """
    # Stuck? minillm labs hint 9.1
    raise NotImplementedError("Lab 9.1 verify_coupled; hint: minillm labs hint 9.1")


def draw_leftover(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """Draw a token from max(p - q, 0), normalised; from p if q is None or max(p - q, 0) is 0 everywhere.

    The running sum is inverted, so one uniform number gives one token: the first id at which the running sum
    exceeds `uniform` times the total. An id of weight 0 is never returned. p and q do not change.

    Args:
        p, q: float64 [vocab_size], the target's distribution, and the one the refused token was drawn from.
        uniform: float64 [], in (0, 1).
    """
    # Stuck? minillm labs hint 9.2
    raise NotImplementedError("Lab 9.2 draw_leftover; hint: minillm labs hint 9.2")


def verify_draft(
    draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Accept or replace each request's drafted tokens, so that the output is distributed as the target.

    With p and q of row i, drafted token i is accepted if `uniform i * q[token] < p[token]`, in float64. The
    first token that is rejected ends the draft: `draw_leftover` replaces it, from p and q of its row. If none
    is rejected, one more token is drawn from the target's row after the draft, without a q.

    Args:
        draft: int64 [num_requests, k], padded with -1 after a request's drafted tokens.
        draft_probs: float32 [num_requests, k, vocab_size], the distribution each token was drawn from. None:
            each drafted token had probability 1 (a point mass), as with a lookup.
        target_probs: float32 [num_requests, k + 1, vocab_size]; row i: after i drafted tokens.
        uniforms: float64 [num_requests, k + 1] in (0, 1): columns 0 to k - 1 decide acceptance, the last one
            draws the token after the accepted ones.

    Returns:
        tokens, int64 [num_requests, k + 1], padded with -1; the number of accepted drafts, int64
        [num_requests]. A token of probability 0 is never emitted. The arguments do not change.
    """
    # Stuck? minillm labs hint 9.3
    raise NotImplementedError("Lab 9.3 verify_draft; hint: minillm labs hint 9.3")


class NgramIndex:
    """For each n-gram of a growing text, the positions that followed it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: dict[tuple[int, ...], deque[int]] = {}  # n-gram -> the positions after it, latest last

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens. An n-gram enters the index when a token has followed it.

        Its length is SHORTEST to LONGEST. Only the PLACES latest positions of an n-gram are kept, and a new
        token costs the same in a text of any length. `tokens` is the caller's: it may change later.
        """
        # Stuck? minillm labs hint 9.4
        raise NotImplementedError(
            "Lab 9.4 NgramIndex.extend, NgramIndex.continuations; hint: minillm labs hint 9.4"
        )

    def continuations(self, length: int, count: int) -> list[list[int]]:
        """At most `count` branches of `length` tokens, all with different first tokens.

        A branch copies what followed an earlier occurrence of the last n tokens: first that of the longest
        n-gram, for one n-gram the latest. At the end of the text a copy goes on with the tokens it has just
        copied. The index finds the places; the text is not searched. The lists are new.
        """
        # Stuck? minillm labs hint 9.4
        raise NotImplementedError(
            "Lab 9.4 NgramIndex.extend, NgramIndex.continuations; hint: minillm labs hint 9.4"
        )


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
        # Stuck? minillm labs hint 9.5
        raise NotImplementedError("Lab 9.5 BlockTable.truncate; hint: minillm labs hint 9.5")

    def branch(self, start: int, num_tokens: int) -> list[int]:
        """Allocate blocks for a branch: another continuation of this sequence from position `start` on.

            table     [ 5 ][ 2 ][ 7 ][ 9 ]        `start` is in block 7: from there on the branch has its
            branch    [ 5 ][ 2 ][ 4 ][ 1 ]        own blocks (the caller must copy block 7 to block 4)

        Returns:
            The branch's own block ids, for tokens `start` to `num_tokens`; the table is unchanged.

        Raises:
            OutOfBlocks: the pool has too few free blocks.
        """
        # Stuck? minillm labs hint 9.6
        raise NotImplementedError("Lab 9.6 BlockTable.branch, BlockTable.adopt; hint: minillm labs hint 9.6")

    def adopt(self, start: int, own: list[int]) -> list[int]:
        """Replace the blocks from position `start` on by a branch's `own` blocks; return the old ones.

        The block of position `start` is replaced too. The caller frees the old blocks, and keeps its list.
        """
        # Stuck? minillm labs hint 9.6
        raise NotImplementedError("Lab 9.6 BlockTable.branch, BlockTable.adopt; hint: minillm labs hint 9.6")

    def release(self) -> None:
        """Free every block."""
        self._pool.free(self.block_ids)
        self.block_ids = []
