"""Drafting level by level, for what one call of `decode_ahead` cannot do: trees, distributions, penalties.

    level 0    logits of the newest tokens    -> candidates -> each path takes the one of its rank
    level 1    one row for each path          -> candidates -> ...

Where every row goes is known before the first, so the tensors that say so are made once for all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.model.runner import ModelRunner
from minillm.ops.sampling import SamplingBatch, best_tokens, probabilities
from minillm.speculation.drafts import DraftSequence


@dataclass
class Path:
    """A path being drafted: whose it is, where, and which candidate it takes at each level."""

    sequence: DraftSequence
    row: int  # of the logits of level 0
    lane: Sequence[int]
    ranks: Sequence[int]
    depth: int
    keys: Sequence[int]
    tokens: list[int] = field(default_factory=list)


def draw_levels(
    runner: ModelRunner, paths: list[Path], logits: Tensor, num_token_ids: int, vocab_size: int = 0
) -> list[Tensor]:
    """Give every path its tokens.

    Args:
        paths: the deepest first.
        logits: [rows, draft vocabulary] of the newest tokens.
        vocab_size: above 0, the distributions are wanted, so wide.

    Returns:
        Of each level the distribution its paths were drawn from, float32 [paths, vocab_size], where wanted.
    """
    steps = runner.step_metadata([(p.sequence.num_tokens, p.lane, p.depth - 1) for p in paths])
    logits, probs, ids = logits[[path.row for path in paths]], list[Tensor](), torch.empty(0)
    for level in range(paths[0].depth):
        paths = [path for path in paths if path.depth > level]
        if level:
            logits = runner.step_logits(ids[: len(paths)], steps[level - 1])
        batch = SamplingBatch(
            params=[path.sequence.params for path in paths],
            keys=[path.keys[level] for path in paths],
            seen=[_seen(path) for path in paths],
            num_token_ids=num_token_ids,
        )
        ids = _choose(runner, logits, batch, [path.ranks[level] for path in paths])
        if vocab_size:
            wide = probabilities(logits, batch)
            probs.append(F.pad(wide, (0, vocab_size - wide.shape[1])))  # both end in what is never drawn
        for path, token_id in zip(paths, ids.tolist(), strict=True):
            path.tokens.append(token_id)
    return probs


def _seen(path: Path) -> list[int]:
    seen = path.sequence.seen_token_ids
    return seen + path.tokens if seen else seen


def _choose(runner: ModelRunner, logits: Tensor, batch: SamplingBatch, ranks: list[int]) -> Tensor:
    """The candidate of each row that its path takes: int64 [rows]."""
    most = max(ranks)
    if most == 0:
        return runner.decoder.ops.sample(logits, batch)
    best = best_tokens(logits, batch, most + 1)
    return best[torch.arange(len(ranks)), torch.tensor(ranks)]
