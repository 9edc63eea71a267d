"""Drafting level by level, for what one call of `decode_ahead` cannot do: trees, distributions, penalties.

    level 0    logits of the newest tokens    -> candidates -> each branch takes the one of its rank
    level 1    one row for each branch          -> candidates -> ...

Where every row goes is known before the first, so the tensors that say so are made once for all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops.sampling import SamplingBatch, best_tokens, probabilities
from minillm.speculation.proposal import DraftSequence
from minillm.worker.runner import ModelRunner


@dataclass
class Branch:
    """A branch being drafted: its sequence, its blocks, and which candidate it takes at each level."""

    sequence: DraftSequence
    row: int  # of the logits of level 0
    table: Sequence[int]
    ranks: Sequence[int]
    depth: int
    keys: Sequence[int]
    tokens: list[int] = field(default_factory=list)


def draw_levels(
    runner: ModelRunner, branches: list[Branch], logits: Tensor, num_token_ids: int, vocab_size: int = 0
) -> list[Tensor]:
    """Give every branch its tokens.

    Args:
        branches: the deepest first.
        logits: [rows, draft vocabulary] of the newest tokens.
        vocab_size: above 0, the distributions are wanted, so wide.

    Returns:
        Of each level the distribution its branches were drawn from, float32 [branches, vocab_size], where
        wanted.
    """
    steps = runner.step_metadata([(p.sequence.num_tokens, p.table, p.depth - 1) for p in branches])
    logits, probs, ids = logits[[branch.row for branch in branches]], list[Tensor](), torch.empty(0)
    for level in range(branches[0].depth):
        branches = [branch for branch in branches if branch.depth > level]
        if level:
            logits = runner.step_logits(ids[: len(branches)], steps[level - 1])
        batch = SamplingBatch(
            params=[branch.sequence.filters for branch in branches],
            keys=[branch.keys[level] for branch in branches],
            seen=[_seen(branch) for branch in branches],
            num_token_ids=num_token_ids,
        )
        ids = _choose(runner, logits, batch, [branch.ranks[level] for branch in branches])
        if vocab_size:
            wide = probabilities(logits, batch)
            probs.append(F.pad(wide, (0, vocab_size - wide.shape[1])))  # both end in what is never drawn
        for branch, token_id in zip(branches, ids.tolist(), strict=True):
            branch.tokens.append(token_id)
    return probs


def _seen(branch: Branch) -> list[int]:
    seen = branch.sequence.seen_token_ids
    return seen + branch.tokens if seen else seen


def _choose(runner: ModelRunner, logits: Tensor, batch: SamplingBatch, ranks: list[int]) -> Tensor:
    """The candidate of each row that its branch takes: int64 [rows]."""
    most = max(ranks)
    if most == 0:
        return runner.decoder.ops.sample(logits, batch)
    best = best_tokens(logits, batch, most + 1)
    return best[torch.arange(len(ranks)), torch.tensor(ranks)]
