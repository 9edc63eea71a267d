"""The decode loop: one new token for every running sequence.

A token depends on the one before it, so a sequence can only advance by one row a step. The whole
model is read for that row; with one sequence decode is bound by memory bandwidth, and nearly all of
the arithmetic idles. Batching is what fills it: the weights are read once for all sequences.

    sequence a  cache: 0 1 2 3 4 5 6     in: token 7   ->  logits for token 8
    sequence b  cache: 0 1 2             in: token 3   ->  logits for token 4

With the default parts a fused backend runs the decode pass and the draws in one call instead
(`worker.py`), with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, SequenceRows


def decode(runner: ModelRunner, rows: Sequence[DecodeRow]) -> Tensor:
    """Run each sequence's newest token and write its key and value to the cache.

    Args:
        runner: runs the model over the paged cache.
        rows: one for each sequence; its block table has room for the token.

    Returns:
        Logits of the next token of each sequence [len(rows), vocab_size].
    """
    batch = [SequenceRows([row.token_id], row.position, row.block_table) for row in rows]
    return runner.last_logits(batch)
