"""Which drafted tokens are accepted: the two rules of speculative decoding, as definitions for the kernels.

A drafter guesses tokens d1 .. dk; the target model scores all of them in one pass (row i has seen d1 .. di):

    row         0          1          2          3        drafted: "once" "upon" "the"
    input    newest      d1 once    d2 upon    d3 the
    target    once        upon        a          -        the target's own tokens
                ok          ok        no                  emitted: once, upon, a

*Coupled* (`verify_coupled`): the target samples every row with that row's own noise, keyed by (seed, sample
index, position), exactly as it would without a draft. A drafted token is accepted if it equals the sampled
token. So the output tokens are the same for every draft and under every filter. A drafter that samples with
the same noise agrees almost as often as the two distributions allow. Temperature 0 is the case without
noise.

*Rejection* (`verify_draft`): a token drawn from the draft's q is accepted with probability min(1, p / q).
The first refused token is replaced by a draw from max(p - q, 0), normalised. The output is distributed
exactly as p. More tokens are accepted than with coupling, but which tokens are output depends on the draft.

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
    """Draw a token from max(p - q, 0), normalised; from p if q is None or max(p - q, 0) is 0 everywhere.

    The running sum is inverted, so one uniform number gives one token: the first id at which the running sum
    exceeds `uniform` times the total. An id of weight 0 is never returned. p and q do not change.

    Args:
        p, q: float64 [vocab_size], the target's distribution, and the one the refused token was drawn from.
        uniform: float64 [], in (0, 1).
    """
    weights = p if q is None else (p - q).clamp(min=0.0)
    if weights.sum() == 0.0:
        weights = p
    running = weights.cumsum(dim=0)
    beyond = (running > uniform * running[-1]).nonzero()
    # Rounding can keep the running sum below the threshold: then the last id with a weight above 0.
    found = beyond[0] if len(beyond) else weights.nonzero()[-1]
    return int(found)


def _one_hot(token_id: int, like: Tensor) -> Tensor:
    point = torch.zeros_like(like)
    point[token_id] = 1.0
    return point
