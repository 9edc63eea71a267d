"""Lab 9: Speculative decoding: verify, keep, roll back.

Replace every `raise NotImplementedError(...)`; the docstrings say what is wanted. All else is the
engine's own. Each task is checked with the engine's own parts around it, so any order will do.

    minillm labs check 9        run the checks
    minillm labs hint 9.1       a hint; --level 2 and 3 say more

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
from minillm.ops.verification import _one_hot
from minillm.speculation.ngram import LONGEST, PLACES, SHORTEST


def verify_coupled(
    sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Walk down each request's tree of drafts, as long as a child is the token the target drew.

                      0 newest          parents  -1  0  1  0  3      a chain has parents -1 0 1 2 ..
                     /        \\
                1 once        3 there   sampled at 0: "there", at 3: "was", at 4: "a"
                  |             |
                2 upon        4 was     walk: 0, 3, 4; tokens: there, was, a

    Args:
        sampled: int64 [num_nodes], the token the target drew behind each node.
        drafted: int64 [num_nodes], the token at each node; that of a request's first node is not looked at.
        parents: int64 [num_nodes], index within the request, smaller than the node's own.
        node_start: int64 [num_requests + 1], from 0 to num_nodes; request i, which may have no nodes, is
            start[i] .. start[i + 1].

    Returns:
        tokens, nodes: int64 [num_nodes]. From node_start[i] on: the tokens request i emits, and the node (its
        index within the request) that each was drawn behind, padded with -1. One more is emitted than
        drafts were accepted. Of several children that fit, the first is taken.
    """
    starts, target = node_start.tolist(), sampled.tolist()
    draft, parent = drafted.tolist(), parents.tolist()
    tokens, nodes = [-1] * len(target), [-1] * len(target)
    for begin, end in pairwise(starts):
        at, depth = begin if begin < end else None, begin
        while at is not None:
            tokens[depth], nodes[depth] = target[at], at - begin
            children = (n for n in range(at + 1, end) if parent[n] == at - begin and draft[n] == target[at])
            at, depth = next(children, None), depth + 1
    return sampled.new_tensor(tokens), sampled.new_tensor(nodes)


def draw_leftover(p: Tensor, q: Tensor | None, uniform: Tensor) -> int:
    """A token from max(p - q, 0), normalised; from p where there is no q, or where nothing is left of p.

    By the inverse of the running sum, so that one uniform is one token: the first id whose weight and all
    before it are more than `uniform` of the whole. Ids of weight 0 are never met.

    Args:
        p, q: float64 [vocab_size]: what the target gives; what the refused token was drawn from.
        uniform: float64 [], in (0, 1).
    """
    weights = p if q is None else (p - q).clamp(min=0.0)
    if weights.sum() == 0.0:
        weights = p
    running = weights.cumsum(dim=0)
    beyond = (running > uniform * running[-1]).nonzero()
    # Rounding can leave the last threshold unreached: then the last token that has any weight.
    found = beyond[0] if len(beyond) else weights.nonzero()[-1]
    return int(found)


def verify_draft(
    draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Accept or replace each request's drafted tokens so that what is emitted is distributed as the target.

    Args:
        draft: int64 [num_requests, k], padded with -1 behind a request's own tokens.
        draft_probs: float32 [num_requests, k, vocab_size], what each was drawn from; None means that no
            other token could have been drafted (a point mass), as from a lookup.
        target_probs: float32 [num_requests, k + 1, vocab_size]; row i scores what follows i drafted tokens.
        uniforms: float64 [num_requests, k + 1] in (0, 1): columns 0 to k - 1 accept, the last one draws the
            token behind the accepted ones.

    Returns:
        tokens int64 [num_requests, k + 1], padded with -1, and how many drafted ones stand, int64
        [num_requests]. A token of probability 0 is never emitted.
    """
    num_requests, k = draft.shape
    tokens = torch.full((num_requests, k + 1), -1, dtype=torch.int64)
    accepted = torch.zeros(num_requests, dtype=torch.int64)
    for i, row in enumerate(draft.tolist()):
        stands, q = 0, None
        for token_id in row:
            if token_id < 0:
                break
            p = target_probs[i, stands].double()
            q = _one_hot(token_id, p) if draft_probs is None else draft_probs[i, stands].double()
            if not uniforms[i, stands] * q[token_id] < p[token_id]:
                break
            tokens[i, stands] = token_id
            stands, q = stands + 1, None
        tokens[i, stands] = draw_leftover(target_probs[i, stands].double(), q, uniforms[i, k])
        accepted[i] = stands
    return tokens.to(draft.device), accepted.to(draft.device)


class NgramIndex:
    """Where each n-gram of a growing text went on."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: dict[tuple[int, ...], deque[int]] = {}  # n-gram -> where it went on, latest last

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens. An n-gram is known once a token has followed it."""
        for token in tokens:
            end = len(self.tokens)
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._next.setdefault(tuple(self.tokens[end - n :]), deque(maxlen=PLACES)).append(end)
            self.tokens.append(token)

    def continuations(self, length: int, count: int) -> list[list[int]]:
        """At most `count` paths of `length` tokens, no two with the same first token."""
        paths: dict[int, list[int]] = {}
        for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):
            for start in reversed(self._next.get(tuple(self.tokens[-n:]), ())):
                if len(paths) == count:
                    return list(paths.values())
                paths.setdefault(self.tokens[start], self._copy(start, length))
        return list(paths.values())

    def _copy(self, start: int, length: int) -> list[int]:
        """`length` tokens from `start` on; past the end of the text the copy repeats itself."""
        period = len(self.tokens) - start
        return [self.tokens[start + i % period] for i in range(length)]


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
