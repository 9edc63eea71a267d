"""Which drafted tokens stand: the two rules of speculative decoding, as definitions for the kernels.

A drafter guesses tokens d1 .. dk; the target model scores all of them in one pass (row i has seen d1 .. di):

    row         0          1          2          3        drafted: "once" "upon" "the"
    input    newest      d1 once    d2 upon    d3 the
    target    once        upon        a          -        the target's own tokens
                ok          ok        no                  emitted: once, upon, a

*Coupled* (`verify_coupled`): the target draws every row with that row's own noise, keyed by (seed, sample
index, position), as it would without a draft. A drafted token stands if it is the very token the target
drew. So the answer is the same token for token, whatever was drafted, under every filter; a drafter that
draws with the same noise agrees as often as the two distributions allow, nearly. Temperature 0 is the case
without noise.

*Rejection* (`verify_draft`): a token drawn from the draft's q stands with probability min(1, p / q); the
first that falls is replaced by a draw from max(p - q, 0), normalised. What comes out is distributed exactly
as p, and it stands oftener than under coupling, but which tokens come out depends on the draft.

Papers: Leviathan et al. 2211.17192 and Chen et al. 2302.01318 (rejection); Daliri, Musco, Suresh 2408.07978
(coupling). Left out: lossy rules that trade exactness for acceptance.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


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


def _one_hot(token_id: int, like: Tensor) -> Tensor:
    point = torch.zeros_like(like)
    point[token_id] = 1.0
    return point
