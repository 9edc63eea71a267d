"""The decode loop: one new token for every running sequence.

A token depends on the one before it, so a sequence advances by only one row per step. The whole model
is read for that row. With one sequence, decode is bound by memory bandwidth, and most of the arithmetic
units are idle. Batching uses them: the weights are read once for all sequences.

    sequence a  cache: 0 1 2 3 4 5 6     in: token 7   ->  logits for token 8
    sequence b  cache: 0 1 2             in: token 3   ->  logits for token 4

With the default parts, a fused backend runs the decode pass, the finiteness check and sampling in one call
instead (`worker.py`), with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, SequenceRows


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
    batch = [SequenceRows([row.token_id], row.position, row.block_table, row.rope_offset) for row in rows]
    return runner.last_logits(batch)
