"""Drafting level by level, for everything `decode_ahead` cannot do: trees, distributions, repetition penalty.

    level 0    logits after the newest tokens -> candidates -> each branch takes the candidate of its rank
    level 1    one row per branch               -> candidates -> ...

The positions and slots of all rows are known at the start, so their tensors are made once for all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.ops.sampling import SamplingBatch, best_tokens, probabilities
from minillm.speculation.proposal import DraftSequence
from minillm.worker.runner import ModelRunner, StepRows


@dataclass
class Branch:
    """A branch in progress: its sequence, its blocks, and the rank of its candidate at each level."""

    sequence: DraftSequence
    row: int  # its row in the logits of level 0
    table: Sequence[int]
    ranks: Sequence[int]
    depth: int
    keys: Sequence[int]
    rope_offset: int = 0
    tokens: list[int] = field(default_factory=list)


def draw_levels(
    runner: ModelRunner, branches: list[Branch], logits: Tensor, num_token_ids: int, vocab_size: int = 0
) -> list[Tensor]:
    """Sample the tokens of every branch.

    Args:
        branches: sorted by depth, the deepest first.
        logits: [rows, draft vocabulary] after the newest tokens.
        vocab_size: width of the distributions to return; 0 for none.

    Returns:
        For each level the distributions that its tokens were sampled from, float32 [branches, vocab_size];
        an empty list if `vocab_size` is 0.
    """
    steps = runner.step_metadata(
        [StepRows(p.sequence.num_tokens, p.table, p.depth - 1, p.rope_offset) for p in branches]
    )
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
            # The two models may pad the vocabulary differently. Padding ids have probability 0.
            probs.append(F.pad(wide, (0, vocab_size - wide.shape[1])))
        for branch, token_id in zip(branches, ids.tolist(), strict=True):
            branch.tokens.append(token_id)
    return probs


def _seen(branch: Branch) -> list[int]:
    seen = branch.sequence.seen_token_ids
    return seen + branch.tokens if seen else seen


def _choose(runner: ModelRunner, logits: Tensor, batch: SamplingBatch, ranks: list[int]) -> Tensor:
    """Choose each branch's candidate from its row of logits: int64 [rows]."""
    most = max(ranks)
    if most == 0:
        return runner.decoder.ops.sample(logits, batch)
    best = best_tokens(logits, batch, most + 1)
    return best[torch.arange(len(ranks)), torch.tensor(ranks)]
